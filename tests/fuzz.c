/* What hostile bytes do: each target in tests/fuzz is a function of any bytes.
   As a test program this replays tests/fuzz/corpus/TARGET/..., the inputs that
   were written by hand or that have found something. With -DFUZZ it
   is a program of libFuzzer, for the target that FUZZ_TARGET names: see
   tests/fuzz/run.sh and make fuzz. */
#include "inside.h"
#include <dirent.h>
#include <sys/socket.h>

#ifdef FUZZ /* libFuzzer keeps what ends by a signal, not what exits */
#undef TEST_FAIL
#define TEST_FAIL(format, what)                                               \
  (fprintf(stderr, "%s:%d: failed: " format "\n", __FILE__, __LINE__, what),   \
   abort())
#undef CHECK_EQ
#define CHECK_EQ(a, b) CHECK((a) == (b))
#endif

/* What is left of an input. */
typedef struct fuzz_input {
  const unsigned char *p, *end;
} fuzz_input;

TEST_FN size_t fuzz_left(const fuzz_input *in) {
  return (size_t)(in->end - in->p);
}
/* The next byte; at the end 0. */
TEST_FN unsigned fuzz_byte(fuzz_input *in) {
  return in->p < in->end ? *in->p++ : 0;
}
/* Up to n bytes; how many there are. */
TEST_FN size_t fuzz_take(fuzz_input *in, size_t n, const unsigned char **out) {
  if (n > fuzz_left(in)) n = fuzz_left(in);
  *out = in->p;
  in->p += n;
  return n;
}
/* A size of two bytes, and as many bytes, if there are. */
TEST_FN size_t fuzz_chunk(fuzz_input *in, const unsigned char **out) {
  unsigned low = fuzz_byte(in);
  return fuzz_take(in, low | fuzz_byte(in) << 8, out);
}

#include "fuzz/client.h"
#include "fuzz/format.h"
#include "fuzz/json.h"
#include "fuzz/pickle.h"
#include "fuzz/pipe.h"
#include "fuzz/ring.h"
#include "fuzz/server.h"
#include "fuzz/stream.h"

#ifdef FUZZ
int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);
int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size) {
  static const struct {
    const char *name;
    void (*call)(const unsigned char *, size_t);
  } targets[] = {{"pickle", fuzz_pickle}, {"json", fuzz_json},
                 {"format", fuzz_format}, {"stream", fuzz_stream},
                 {"pipe", fuzz_pipe}, {"ring", fuzz_ring},
                 {"server", fuzz_server}, {"client", fuzz_client}};
  static void (*call)(const unsigned char *, size_t);
  size_t i;
  if (call == NULL) {
    const char *name = getenv("FUZZ_TARGET");
    for (i = 0; i < sizeof targets / sizeof *targets; i++)
      if (name && strcmp(name, targets[i].name) == 0) call = targets[i].call;
    CHECK(call != NULL);
  }
  call(data, size);
  return 0;
}
#else

/* Calls the target with each file of its corpus, and with each cut short: what
   ends in the middle is what most bugs are about. */
TEST_FN void replay(const char *target,
                    void (*call)(const unsigned char *, size_t), size_t cuts) {
  static unsigned char data[1 << 20];
  char path[700];
  int files = 0;
  struct dirent *entry;
  DIR *dir;
  snprintf(path, sizeof path, "tests/fuzz/corpus/%s", target);
  dir = opendir(path);
  if (dir == NULL) SKIP("there is no corpus here");
  while ((entry = readdir(dir)) != NULL) {
    size_t n, cut;
    FILE *f;
    if (entry->d_name[0] == '.') continue;
    snprintf(path, sizeof path, "tests/fuzz/corpus/%s/%.300s", target,
             entry->d_name);
    f = fopen(path, "rb");
    CHECK(f != NULL);
    n = fread(data, 1, sizeof data, f);
    fclose(f);
    files++;
    call(data, n);
    for (cut = 1; cut <= cuts && cut < n; cut++) call(data, n * cut / (cuts + 1));
  }
  closedir(dir);
  CHECK(files > 0);
}

TEST(pickles_of_the_corpus) { replay("pickle", fuzz_pickle, 3); }
TEST(json_of_the_corpus) { replay("json", fuzz_json, 3); }
TEST(formats_of_the_corpus) { replay("format", fuzz_format, 3); }
TEST(streams_of_the_corpus) { replay("stream", fuzz_stream, 3); }
TEST(packets_of_the_corpus) { replay("pipe", fuzz_pipe, 3); }
TEST(a_spoiled_ring_of_the_corpus) {
  NEEDS_FORK;
  replay("ring", fuzz_ring, 1);
}
TEST(a_servers_peers_of_the_corpus) {
  replay("server", fuzz_server, 1);
  fuzz_server_end();
}
TEST(a_clients_peers_of_the_corpus) {
  replay("client", fuzz_client, 1);
  fuzz_client_end();
}

TEST_MAIN
#endif
