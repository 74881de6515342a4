// Boost.Interprocess' message_queue for queue_processes.c.
#include <boost/interprocess/ipc/message_queue.hpp>
#include <cstdio>
#include <unistd.h>

using boost::interprocess::message_queue;
static message_queue *queues[2];
static char names[2][64];
static unsigned char buffer[65536];

extern "C" {
bool boost_open(int channel, size_t size, size_t capacity);
void boost_put(int channel, size_t size);
void boost_get(int channel, size_t size);
void boost_close(int channel);

bool boost_open(int channel, size_t size, size_t capacity) {
  std::snprintf(names[channel], sizeof names[channel], "conc-bench-%d-%d",
                static_cast<int>(getpid()), channel);
  queues[channel] = new message_queue(boost::interprocess::create_only,
                                      names[channel], capacity, size);
  return true;
}
void boost_put(int channel, size_t size) {
  queues[channel]->send(buffer, size, 0);
}
void boost_get(int channel, size_t size) {
  message_queue::size_type got;
  unsigned priority;
  queues[channel]->receive(buffer, size, got, priority);
}
void boost_close(int channel) {
  delete queues[channel];
  message_queue::remove(names[channel]);
}
}
