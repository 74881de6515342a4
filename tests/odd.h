/* odd.h: a Redis that gives odd answers. It stands between a client and a real
 * server, and passes on what they say, until a request comes that has certain
 * bytes in it: then it does what it was told. After conc.h or inside.h. */
#ifndef TEST_ODD_H
#define TEST_ODD_H
#include "servers.h"
#include "tasks.h"

#include <pthread.h>
#include <strings.h>

typedef enum odd_way {
  AS_IT_IS,
  ANSWER,       /* the answer is `text`, and the server is not asked */
  REPLACE,      /* the server is asked, but the answer is `text` */
  LOSE_REQUEST, /* the connection ends before the server is asked */
  LOSE_ANSWER,  /* and here afterwards */
  HALF,         /* as this, but half of the answer comes */
  SILENCE,      /* the server is asked, and the answer never comes */
  DRIP          /* the answer comes one byte at a time */
} odd_way;

typedef struct odd {
  conc_task task;
  int listener;
  char address[96]; /* of this */
  const redis *real;
  pthread_mutex_t guard; /* of what follows */
  const char *words; /* what a request has in it that is meant */
  const char *text;
  size_t size;       /* of the text */
  odd_way way;
  int skip;  /* so many more are passed on before */
  int times; /* this often; then AS_IT_IS */
  int met;   /* how often it was done */
  int links; /* connections, ever */
} odd;

/* Whether the bytes have the words in them, whatever the case. */
TEST_FN bool odd_has(const char *bytes, size_t n, const char *words) {
  const size_t size = strlen(words);
  for (size_t i = 0; i + size <= n; i++)
    if (strncasecmp(bytes + i, words, size) == 0) return true;
  return false;
}

/* Says what is to happen to the next request. */
TEST_FN void odd_next(odd *o, const char *words, odd_way way,
                      const char *text) {
  pthread_mutex_lock(&o->guard);
  o->words = words;
  o->way = way;
  o->text = text;
  o->size = text != NULL ? strlen(text) : 0;
  o->skip = o->met = 0;
  o->times = 1;
  pthread_mutex_unlock(&o->guard);
}

/* ... and to all that come after it. */
TEST_FN void odd_always(odd *o, const char *words, odd_way way,
                        const char *text) {
  odd_next(o, words, way, text);
  STORE(o->times, 1 << 30);
}

TEST_FN int odd_met(odd *o) {
  int met;
  pthread_mutex_lock(&o->guard);
  met = o->met;
  pthread_mutex_unlock(&o->guard);
  return met;
}

/* What is to happen to this request. */
TEST_FN odd_way odd_way_of(odd *o, const char *request, size_t n,
                           const char **text, size_t *size) {
  odd_way way = AS_IT_IS;
  pthread_mutex_lock(&o->guard);
  if (LOAD(o->times) > 0 && o->way != AS_IT_IS &&
      odd_has(request, n, o->words) && o->skip-- <= 0) {
    way = o->way;
    *text = o->text;
    *size = o->size;
    o->met++;
    ADD_FETCH(o->times, -1);
  }
  pthread_mutex_unlock(&o->guard);
  return way;
}

/* Sends all; false: the other side has gone. */
TEST_FN bool odd_send(int fd, const char *bytes, size_t n) {
  while (n > 0) {
    ssize_t sent = send(fd, bytes, n, MSG_NOSIGNAL);
    if (sent <= 0) return false;
    bytes += sent;
    n -= (size_t)sent;
  }
  return true;
}

typedef struct odd_link {
  odd *of;
  int client, server;
  char *in[2]; /* what was read of both, and not passed on yet */
  size_t size[2], room[2];
} odd_link;
enum { OF_CLIENT, OF_SERVER };

/* Reads what comes from one of them, until something whole has come from `of`,
   and returns its size. 0: the client or the server has gone, or the test is
   over. */
TEST_FN size_t odd_read(odd_link *l, int of) {
  for (;;) {
    struct pollfd p[2];
    size_t n = l->size[of] > 0 ? resp_size(l->in[of], l->size[of]) : 0;
    if (n > 0) return n;
    memset(p, 0, sizeof p);
    p[OF_CLIENT].fd = l->client;
    p[OF_SERVER].fd = l->server;
    p[OF_CLIENT].events = p[OF_SERVER].events = POLLIN;
    if (poll(p, 2, 5) < 0 && errno != EINTR) return 0;
    if (conc_sleep(0) != 0) return 0; /* cancelled */
    for (int i = 0; i < 2; i++) {
      ssize_t got;
      if (!(p[i].revents & (POLLIN | POLLHUP | POLLERR))) continue;
      if (l->room[i] - l->size[i] < 65536) {
        l->room[i] = 2 * l->room[i] + 65536;
        l->in[i] = (char *)realloc(l->in[i], l->room[i] + 1);
      }
      got = recv(p[i].fd, l->in[i] + l->size[i], l->room[i] - l->size[i],
                 MSG_DONTWAIT);
      if (got < 0 && (errno == EAGAIN || errno == EINTR)) continue;
      if (got <= 0) return 0;
      l->size[i] += (size_t)got;
      l->in[i][l->size[i]] = 0;
    }
  }
}

TEST_FN void odd_forget(odd_link *l, int of, size_t n) {
  l->size[of] -= n;
  memmove(l->in[of], l->in[of] + n, l->size[of] + 1);
}

/* Until something ends the connection. */
TEST_FN void odd_pass(odd_link *l) {
  size_t n;
  while ((n = odd_read(l, OF_CLIENT)) > 0) {
    const char *text = NULL;
    size_t size = 0;
    const odd_way way = odd_way_of(l->of, l->in[OF_CLIENT], n, &text, &size);
    bool flows = true;
    if (way == LOSE_REQUEST) return;
    if (way != ANSWER) flows = odd_send(l->server, l->in[OF_CLIENT], n);
    odd_forget(l, OF_CLIENT, n);
    if (way == SILENCE) {
      odd_read(l, OF_SERVER);
      l->size[OF_SERVER] = 0;
      while (recv(l->client, l->in[OF_CLIENT], 1, MSG_DONTWAIT) != 0 &&
             conc_sleep(0.002) == 0) {
      }
      return;
    }
    if (way != ANSWER) {
      n = flows ? odd_read(l, OF_SERVER) : 0;
      if (n == 0 || way == LOSE_ANSWER) return;
    }
    if (way == ANSWER || way == REPLACE) {
      flows = odd_send(l->client, text, size);
    } else if (way == HALF) {
      odd_send(l->client, l->in[OF_SERVER], n / 2);
      return;
    } else if (way == DRIP) {
      for (size_t i = 0; i < n && flows; i++) {
        flows = odd_send(l->client, l->in[OF_SERVER] + i, 1);
        if (i < 200) usleep(200); /* so that each is read alone */
      }
    } else {
      flows = odd_send(l->client, l->in[OF_SERVER], n);
    }
    if (way != ANSWER) odd_forget(l, OF_SERVER, n);
    if (!flows) return;
  }
}

TEST_FN void *odd_link_main(void *arg) {
  odd_link *l = (odd_link *)arg;
  fcntl(l->client, F_SETFL, 0);
  l->server = redis_reach(l->of->real);
  if (l->server >= 0) {
    odd_pass(l);
    close(l->server);
  }
  conc_close(l->client);
  free(l->in[OF_CLIENT]), free(l->in[OF_SERVER]);
  free(l);
  return NULL;
}

TEST_FN void *odd_main(void *arg) {
  enum { MOST = 512 };
  static conc_task links[MOST];
  odd *o = (odd *)arg;
  int count = 0;
  for (;;) {
    odd_link *l;
    int fd = conc_accept(o->listener, CONC_FOREVER);
    if (fd == -ECANCELED) break;
    if (fd < 0) continue;
    CHECK(count < MOST);
    ADD_FETCH(o->links, 1);
    l = (odd_link *)calloc(1, sizeof *l);
    l->of = o;
    l->client = fd;
    start(conc_thread_start, &links[count++], odd_link_main, l);
  }
  while (count > 0) {
    conc_cancel(&links[--count]);
    conc_join(&links[count], CONC_FOREVER);
  }
  return NULL;
}

TEST_FN void odd_begin(odd *o, const redis *real) {
  char path[80];
  memset(o, 0, sizeof *o);
  pthread_mutex_init(&o->guard, NULL);
  o->real = real;
  o->words = "";
  snprintf(path, sizeof path, "%s/odd", real->folder);
  snprintf(o->address, sizeof o->address, "redis+unix://%s", path);
  o->listener = conc_listen(path);
  CHECK(o->listener >= 0);
  start(conc_thread_start, &o->task, odd_main, o);
}

TEST_FN void odd_end(odd *o) {
  conc_cancel(&o->task);
  CHECK_EQ(conc_join(&o->task, CONC_FOREVER), -ECANCELED);
  conc_close(o->listener);
  pthread_mutex_destroy(&o->guard);
}

#endif
