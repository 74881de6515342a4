/* Prints the journal of a queue: what happened to its messages, in the order
   in which it did.
     cc journal.c -pthread -o journal && ./journal PATH */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>

typedef struct summary {
  size_t puts, done, damaged;
} summary;

/* What cannot be printed becomes a dot, and only the beginning is shown. */
static void print_bytes(const char *data, size_t size) {
  size_t i;
  putchar('"');
  for (i = 0; i < size && i < 40; i++)
    putchar(data[i] >= ' ' && data[i] <= '~' ? data[i] : '.');
  printf(size > 40 ? "...\"" : "\"");
}

static void print_message(const conc_journal_record *r) {
  conc_value *value;
  char text[80];
  printf(" %zu bytes ", r->size);
  if (r->value && conc_pickle_loads(&value, r->data, r->size) == 0) {
    conc_value_text(value, text, sizeof text);
    printf("%s", text);
    conc_value_free(value);
  } else {
    print_bytes((const char *)r->data, r->size);
  }
}

static int print_record(const conc_journal_record *r, void *arg) {
  static const char *const names[] = {"",     "put", "back", "done",
                                      "known", "lost", "torn"};
  summary *sum = (summary *)arg;
  printf("%8llu %-5s", (unsigned long long)r->at, names[r->type]);
  if (r->serial != 0) printf(" %llu", (unsigned long long)r->serial);
  if (r->type == CONC_JOURNAL_PUT) {
    sum->puts++;
    print_message(r);
  }
  if (r->type == CONC_JOURNAL_DONE) sum->done++;
  if (r->type == CONC_JOURNAL_LOST || r->type == CONC_JOURNAL_TORN) {
    sum->damaged += r->lost;
    printf(" %llu bytes are damaged", (unsigned long long)r->length);
  }
  if (r->priority > 0) printf(", priority %d", r->priority);
  if (r->deliveries > 0) printf(", delivered %d times", r->deliveries);
  if (r->due > 0) printf(", due at %.3f", r->due);
  if (r->id_size > 0) {
    printf(", id ");
    print_bytes(r->id, r->id_size);
  }
  putchar('\n');
  return 0;
}

int main(int argc, char **argv) {
  summary sum = {0, 0, 0};
  int rc;
  if (argc != 2) {
    fprintf(stderr, "usage: %s PATH\n", argv[0]);
    return 2;
  }
  rc = conc_journal_read(argv[1], print_record, &sum);
  if (rc != 0) {
    fprintf(stderr, "%s: %s\n", argv[1], conc_strerror(rc));
    return 1;
  }
  printf("%zu were put, %zu are done", sum.puts, sum.done);
  if (sum.damaged > 0) printf(", %zu are damaged", sum.damaged);
  putchar('\n');
  return 0;
}
