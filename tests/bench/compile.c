/* What it costs to compile with conc.h, and how much it adds to a program.
 *
 *   compile [--quick] [FILTER]      only rows whose name contains FILTER
 *
 * The program is the first one of README.md. It is compiled and linked with
 * CONC_STATIC, as a program of one file should be, and without, when all that
 * conc.h has is in the result. There is no peer: nobody else is one header.
 *
 *   seconds   of the CPU, for compiler and linker, from source to program
 *   added     KiB of the stripped program above one that does nothing
 *
 * A quick run does not compile without CONC_STATIC.
 */
#include "bench.h"
#include <sys/resource.h>
#include <sys/stat.h>

static char base[4096]; /* our own path: what is written stands beside it */
static char root[4096]; /* where conc.h is */

/* The path of a file beside this program. */
static const char *beside(const char *suffix) {
  static char path[sizeof base + 32];
  snprintf(path, sizeof path, "%s%s", base, suffix);
  return path;
}

/* Copies README's first program in C; with CONC_STATIC, or without. */
static bool write_program(const char *suffix, bool is_static) {
  char line[1000];
  bool inside = false, ended = false;
  FILE *out = fopen(beside(suffix), "w"), *in;
  snprintf(line, sizeof line, "%.900s/README.md", root);
  in = fopen(line, "r");
  if (out != NULL && is_static) fputs("#define CONC_STATIC\n", out);
  while (in != NULL && out != NULL && !ended &&
         fgets(line, sizeof line, in) != NULL) {
    if (inside && strncmp(line, "```", 3) == 0) ended = true;
    else if (inside && strncmp(line, "#define CONC_STATIC", 19) != 0)
      fputs(line, out);
    if (strcmp(line, "```c\n") == 0) inside = true;
  }
  if (in != NULL) fclose(in);
  return out != NULL && fclose(out) == 0 && ended;
}

static bool write_empty(void) {
  FILE *out = fopen(beside("_empty.c"), "w");
  if (out == NULL) return false;
  fputs("int main(void) { return 0; }\n", out);
  return fclose(out) == 0;
}

/* Compiles a program; the seconds of CPU that it took, or NAN. */
static double compile(const char *compiler, const char *option,
                      const char *program) {
  char command[3 * sizeof base];
  struct rusage before, after;
  int size = snprintf(command, sizeof command,
                      "%s%s -I'%s' -o '%s_program' '%s%s' -pthread "
                      ">/dev/null 2>&1", compiler, option, root, base, base,
                      program);
  if (size >= (int)sizeof command) return NAN;
  getrusage(RUSAGE_CHILDREN, &before);
  if (system(command) != 0) return NAN;
  getrusage(RUSAGE_CHILDREN, &after);
  return (double)(after.ru_utime.tv_sec - before.ru_utime.tv_sec +
                  after.ru_stime.tv_sec - before.ru_stime.tv_sec) +
         (double)(after.ru_utime.tv_usec - before.ru_utime.tv_usec +
                  after.ru_stime.tv_usec - before.ru_stime.tv_usec) * 1e-6;
}

/* Bytes of the program that was compiled last, stripped. */
static double program_size(void) {
  char command[2 * sizeof base];
  struct stat st;
  snprintf(command, sizeof command, "strip '%s_program'", base);
  if (system(command) != 0) return NAN;
  return stat(beside("_program"), &st) == 0 ? (double)st.st_size : NAN;
}

static void rows(const char *compiler, const char *option) {
  static const char *const ways[] = {"conc, CONC_STATIC", "conc, default"};
  static const char *const programs[] = {"_static.c", "_default.c"};
  double seconds[2][BENCH_RUNS], size[2] = {NAN, NAN}, empty;
  char name[80];
  int most = bench_hurries() ? 1 : 2; /* all of it takes half a minute */
  snprintf(name, sizeof name, "compile, %s%s", compiler, option);
  if (!bench_wanted(name)) return;
  empty = isnan(compile(compiler, option, "_empty.c")) ? NAN : program_size();
  for (int r = 0; r < bench_rounds; r++)
    for (int i = 0; i < most; i++) {
      seconds[i][r] = isnan(empty) ? NAN
                                   : compile(compiler, option, programs[i]);
      if (r == 0 && !isnan(seconds[i][r]))
        size[i] = (program_size() - empty) / 1024;
    }
  for (int i = 0; i < most; i++)
    bench_print(name, "s", ways[i], seconds[i], (size_t)bench_rounds);
  snprintf(name, sizeof name, "added by %s%s", compiler, option);
  for (int i = 0; i < most; i++)
    bench_print(name, "KiB", ways[i], &size[i], 1);
}

int main(int argc, char **argv) {
  char *slash;
  bench_begin(argc, argv, "Compiling");
  bench_rounds = bench_quick ? BENCH_QUICK : 5;
  snprintf(base, sizeof base, "%s", argv[0]);
  snprintf(root, sizeof root, "%s", __FILE__);
  slash = strrchr(root, '/');
  snprintf(slash ? slash + 1 : root, 16, "../..");
  if (!write_program("_static.c", true) ||
      !write_program("_default.c", false) || !write_empty()) {
    puts("  compile: README.md has no program");
    return 1;
  }
  rows("gcc", " -O0");
  rows("gcc", " -O2");
  rows("clang", " -O0");
  rows("clang", " -O2");
  rows("tcc", "");
  return 0;
}
