/* python.h: programs of tests/interop/ that a test talks to line by line. The
 * test's working directory is the root of the repository. */
#ifndef TEST_PYTHON_H
#define TEST_PYTHON_H
#include "child.h"
#include "test.h"

#include <glob.h>

/* A program of tests/interop/ that Python runs, and its pipes. */
typedef struct python {
  pid_t pid;
  FILE *in, *out;
} python;

TEST_FN python begin_python(const char *program, const char *script,
                            const char *what, const char *address) {
  char path[100];
  python p;
  int in[2], out[2];
  snprintf(path, sizeof path, "tests/interop/%s", script);
  CHECK_EQ(pipe(in), 0);
  CHECK_EQ(pipe(out), 0);
  p.pid = begin_child();
  if (p.pid == 0) {
    dup2(in[0], 0), dup2(out[1], 1);
    close(in[1]), close(out[0]);
    execlp(program, program, "-W", "ignore", path, what, address, "abc",
           (char *)NULL);
    _exit(127);
  }
  close(in[0]), close(out[1]);
  p.in = fdopen(in[1], "w");
  p.out = fdopen(out[0], "r");
  return p;
}

TEST_FN const char *hear(python *p) {
  static char line[300];
  CHECK(fgets(line, sizeof line, p->out) != NULL);
  line[strcspn(line, "\n")] = 0;
  return line;
}

TEST_FN void tell(python *p, const char *line) {
  fprintf(p->in, "%s\n", line);
  fflush(p->in);
}

#define SAYS(want, p, line) (tell(p, line), CHECK_STR(hear(p), want))

TEST_FN void end_python(python *p) {
  CHECK_EQ(kill(p->pid, SIGKILL), 0);
  reap(p->pid, -SIGKILL);
  fclose(p->in), fclose(p->out);
}

/* Calls fn with the Python of that version, if it is there. */
TEST_FN void with_python(const char *version, void (*fn)(const char *)) {
  char text[300];
  const char *home = getenv("HOME");
  glob_t found;
  NEEDS_FORK;
  snprintf(text, sizeof text, "%s/.pyenv/versions/%s.*/bin/python",
           home != NULL ? home : "", version);
  if (glob(text, 0, NULL, &found) == 0) {
    fn(found.gl_pathv[0]);
    globfree(&found);
    return;
  }
  snprintf(text, sizeof text, "python%s -c '' 2>/dev/null", version);
  if (system(text) != 0) SKIP("this Python was not found");
  snprintf(text, sizeof text, "python%s", version);
  fn(text);
}

#endif
