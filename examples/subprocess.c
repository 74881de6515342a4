/* subprocess of the Python tutorials (in Chinese) that these examples follow:
   runs nslookup, first as it is, then with input of ours. Where there is no
   nslookup, it runs programs that are everywhere.
     cc subprocess.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <stdio.h>
#include <string.h>

/* What a call has returned. */
static int tell(int rc) {
  if (rc >= 0)
    printf("Exit code: %d\n", rc);
  else
    printf("No exit code: %s\n", conc_strerror(rc));
  fflush(stdout); /* before others write to it */
  return rc;
}

int main(void) {
  const char *const nslookup[] = {"nslookup", "www.python.org", NULL};
  const char *const echo[] = {"echo", "no nslookup here", NULL};
  const char *const alone[] = {"nslookup", NULL};
  const char *const sort[] = {"sort", NULL};
  const char *input = "set q=mx\npython.org\nexit\n";
  conc_popen p = {.argv = alone,
                  .std_in = CONC_PIPE,
                  .std_out = CONC_PIPE,
                  .std_err = CONC_PIPE,
                  .kill_on_timeout = true};
  conc_output output, err;
  int rc;

  printf("$ nslookup www.python.org\n");
  fflush(stdout);
  rc = tell(conc_call(nslookup, 10));
  if (rc == -ENOENT) tell(conc_call(echo, 10));

  if (rc == -ENOENT) p.argv = sort;
  printf("$ %s\n", p.argv[0]);
  if ((rc = conc_popen_start(&p)) != 0) return tell(rc) != 0;
  rc = conc_communicate(&p, input, strlen(input), &output, &err, 10);
  if (output.data != NULL) printf("%s", output.data);
  tell(rc);
  conc_free(output.data);
  conc_free(err.data);
  return 0;
}
