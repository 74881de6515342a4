/* Reads values and writes them again, for values.py. A request is a letter, a
   number and a size (4 bytes, little-endian) with so many bytes behind: 'p'
   a pickle, to be written as a pickle of that protocol; 'o' the same, and it
   may have objects in it; 'j' a pickle, to be
   written as JSON with that indent; 'l' JSON, to be written as a pickle. A
   reply is a size, or a negative errno, with so many bytes behind. */
#include "../../conc.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(void) {
  unsigned char head[6];
  while (fread(head, 1, 6, stdin) == 6) {
    size_t n = head[2] | (size_t)head[3] << 8 | (size_t)head[4] << 16, size = 0;
    char *data = (char *)malloc(n + 1), *text = NULL;
    conc_value *v = NULL;
    void *out = NULL;
    int rc = fread(data, 1, n, stdin) == n ? 0 : -EIO;
    if (rc == 0) rc = head[0] == 'l'   ? conc_json_loads(&v, data, n, NULL)
                      : head[0] == 'o' ? conc_pickle_loads_objects(&v, data, n)
                                       : conc_pickle_loads(&v, data, n);
    if (rc == 0 && head[0] == 'j') {
      rc = conc_json_dumps(v, head[1], &text, &size);
      out = text;
    } else if (rc == 0) {
      rc = conc_pickle_dumps(v, head[1] | (head[0] == 'o' ? CONC_PASS : 0),
                             &out, &size);
    }
    int32_t reply = rc != 0 ? rc : (int32_t)size;
    fwrite(&reply, 1, 4, stdout);
    if (rc == 0) fwrite(out, 1, size, stdout);
    fflush(stdout);
    conc_free(out);
    conc_value_free(v);
    free(data);
  }
  return 0;
}
