/* powercut.h: what is on the disk if the power goes. The calls that change a
 * file, or wait for the disk, are events; so is what a task was told. All that
 * was before an event is played back, as POSIX allows it: of each file all up
 * to its last sync, and of the rest any part in any order.
 * journal.c notes the events of its own process; of power.c a library that is
 * preloaded (interop/powercut.c) does, in another one, by the log below. */
#ifndef TEST_POWERCUT_H
#define TEST_POWERCUT_H
#ifdef POWERCUT_LIBRARY /* it only writes a log */
#define TEST_FN static
#else
#include "test.h"
#endif

#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>

enum { WRITE, CUT, SYNC, SYNC_DIRECTORY, RENAME, TOLD };
/* What a task has asked for a message, and was told. */
enum { ASKED = 1, THERE = 2, DONE_ASKED = 4, DONE_THERE = 8 };

typedef struct event {
  int what;
  ino_t inode;
  unsigned char *data;
  size_t size;
  off_t at;
  unsigned serial;     /* of what was told */
  unsigned char state; /* what; 0: the put was refused */
} event;

/* --- a log that processes share --- */

typedef struct log_head {
  uint64_t used, room; /* bytes behind this head */
} log_head;
typedef struct log_entry { /* its data follows, up to a multiple of 8 */
  event e;
  uint64_t size; /* with this */
} log_entry;

/* Appends an event, after what it tells of: then those of all processes are in
   an order that was possible. Full: it is counted, and not written. */
TEST_FN void log_event(log_head *log, const event *e) {
  uint64_t size = sizeof(log_entry) + ((e->size + 7) & ~(uint64_t)7);
  uint64_t at = __atomic_fetch_add(&log->used, size, __ATOMIC_ACQ_REL);
  log_entry *to = (log_entry *)(void *)((char *)(log + 1) + at);
  if (at + size > log->room) return;
  to->e = *e;
  if (e->size > 0) memcpy(to + 1, e->data, e->size);
  to->size = size;
}

#ifndef POWERCUT_LIBRARY

/* --- the events --- */

static event *events;
static size_t event_count, event_room;

TEST_FN void note_event(event e) {
  if (event_count == event_room) {
    event_room = event_room * 2 + 1024;
    events = (event *)realloc(events, event_room * sizeof *events);
    CHECK(events != NULL);
  }
  events[event_count++] = e;
}

/* The events of a log, which all its processes have ended. */
TEST_FN void read_log(log_head *log) {
  uint64_t at = 0;
  CHECK(log->used <= log->room);
  while (at < log->used) {
    log_entry *from = (log_entry *)(void *)((char *)(log + 1) + at);
    CHECK(from->size > 0);
    from->e.data = (unsigned char *)(from + 1);
    note_event(from->e);
    at += from->size;
  }
}

/* What was told of each message before an event. */
TEST_FN void told_before(size_t n, unsigned char *state, size_t serials) {
  memset(state, 0, serials);
  for (size_t i = 0; i < n; i++) {
    const event *e = &events[i];
    if (e->what != TOLD) continue;
    CHECK(e->serial < serials);
    state[e->serial] =
        e->state == 0 ? 0 : (unsigned char)(state[e->serial] | e->state);
  }
}

/* --- the file after the cut --- */

static struct image {
  size_t size, room;
  unsigned char *data;
} image;

/* Bytes behind its end are 0. */
TEST_FN void image_resize(size_t size) {
  if (size > image.room) {
    size_t room = size + image.room + 65536;
    image.data = (unsigned char *)realloc(image.data, room);
    CHECK(image.data != NULL);
    memset(image.data + image.room, 0, room - image.room);
    image.room = room;
  }
  if (size < image.size) memset(image.data + size, 0, image.size - size);
  image.size = size;
}

/* Does again what an event did, or a part of what it wrote. */
TEST_FN void apply(const event *e, size_t from, size_t to) {
  size_t end = (size_t)e->at + (e->what == CUT ? 0 : to);
  if (e->what == CUT || end > image.size) image_resize(end);
  if (e->what != CUT)
    memcpy(image.data + e->at + from, e->data + from, to - from);
}

/* Makes the image of the file that has the name if the power goes when n
   events have been; of the renames since its last sync the directory has some.
   False: there is none. */
TEST_FN bool cut_at(size_t n) {
  size_t i, synced = 0, pending = 0, renames = 0, synced_renames = 0, kept;
  size_t *order = (size_t *)malloc((n + 1) * sizeof *order);
  ino_t named = 0;
  CHECK(order != NULL);
  image_resize(0);
  for (i = 0; i < n; i++) {
    if (events[i].what == RENAME) renames++;
    if (events[i].what == SYNC_DIRECTORY) synced_renames = renames;
  }
  kept = synced_renames;
  if (renames > kept) kept += test_random() % (renames - kept + 1);
  for (i = 0; i < n; i++)
    if (events[i].what == RENAME && kept > 0 && kept-- > 0)
      named = events[i].inode;
  for (i = 0; i < n; i++)
    if (events[i].what == SYNC && events[i].inode == named) synced = i;
  for (i = 0; i < n; i++) {
    const event *e = &events[i];
    if ((e->what != WRITE && e->what != CUT) || e->inode != named) continue;
    if (i < synced) apply(e, 0, e->size);
    else order[pending++] = i;
  }
  for (i = pending; i > 1; i--) { /* in any order */
    size_t other = test_random() % i, swap = order[other];
    order[other] = order[i - 1];
    order[i - 1] = swap;
  }
  for (i = 0; i < pending; i++) {
    const event *e = &events[order[i]];
    size_t from = 0, to = e->size;
    switch (test_random() % 4) {
    case 0: continue;                    /* not at all */
    case 1: to = test_random() % (to + 1); break;
    case 2: from = test_random() % (to + 1); break;
    }
    apply(e, from, to);
  }
  free(order);
  return named != 0;
}
#endif
#endif
