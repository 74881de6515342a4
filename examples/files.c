/* The chapter on I/O of the Python tutorials (in Chinese) that these examples
   follow: files that close themselves, directories, pickle and JSON. Works in
   a folder of its own, which it removes.
     cc files.c -pthread && ./a.out */

#define CONC_IMPLEMENTATION
#include "../conc.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* with open(path, mode) as f: closed on every way out of the block. */
#define WITH_OPEN(f, path, mode)                                         \
  for (FILE *f __attribute__((cleanup(close_file))) = fopen(path, mode), \
            *f##_once = f;                                               \
       f##_once != NULL; f##_once = NULL)
static void close_file(FILE **f) {
  if (*f != NULL) fclose(*f);
}

/* os.path: '/' between, and the last '/' or '.' from which the rest is. */
static void paths(void) {
  char path[200], here[4096];
  const char *name, *extension;
  printf("%s\n", realpath(".", here));
  snprintf(path, sizeof path, "%s/%s", "/Users/michael/testdir", "file.txt");
  name = strrchr(path, '/') + 1;
  extension = strrchr(name, '.');
  printf("('%.*s', '%s')\n", (int)(name - 1 - path), path, name);
  printf("('%.*s', '%s')\n", (int)(extension - path), path, extension);
}

static void show(const conc_value *v) {
  char text[200];
  conc_value_text(v, text, sizeof text);
  printf("%s\n", text);
}

/* Whether it is a directory, or a file with that extension. */
static void list(bool directories, const char *extension) {
  DIR *here = opendir(".");
  struct dirent *entry;
  struct stat st;
  while (here != NULL && (entry = readdir(here)) != NULL) {
    const char *dot = strrchr(entry->d_name, '.');
    if (entry->d_name[0] == '.' || stat(entry->d_name, &st) != 0) continue;
    if (S_ISDIR(st.st_mode) ? directories
                            : dot != NULL && strcmp(dot, extension) == 0)
      printf("%s\n", entry->d_name);
  }
  if (here != NULL) closedir(here);
}

int main(void) {
  char folder[] = "/tmp/conc-files-XXXXXX", line[100];
  conc_value *d, *again;
  void *pickled;
  char *json;
  size_t size;
  if (mkdtemp(folder) == NULL || chdir(folder) != 0) return 1;

  WITH_OPEN(f, "test.txt", "w") fputs("Hello, world!\nHello, again!\n", f);
  WITH_OPEN(f, "test.txt", "r") {
    while (fgets(line, sizeof line, f)) printf("%s", line);
  }

  paths();
  mkdir("testdir", 0700);
  rename("test.txt", "test.py");
  list(true, "");
  list(false, ".py");
  rmdir("testdir");

  if (conc_build(&d, "{s:s,s:i,s:i}", "name", "Bob", "age", 20, "score", 88))
    return 1;
  if (conc_pickle_dumps(d, 0, &pickled, &size) != 0) return 1;
  WITH_OPEN(f, "dump.txt", "wb") fwrite(pickled, 1, size, f);
  conc_free(pickled);
  WITH_OPEN(f, "dump.txt", "rb") {
    size = fread(line, 1, sizeof line, f);
    if (conc_pickle_loads(&again, line, size) != 0) return 1;
    show(again);
    conc_value_free(again);
  }

  if (conc_json_dumps(d, 0, &json, &size) != 0) return 1;
  printf("%s\n", json);
  if (conc_json_loads(&again, json, size, NULL) != 0) return 1;
  show(conc_value_get(again, "name"));
  conc_value_free(again);
  conc_value_free(d);
  conc_free(json);

  remove("test.py");
  remove("dump.txt");
  return rmdir(folder);
}
