// Locks and forks: a child in which another thread's call was under way would never get that call's lock.
#pragma once

#include <pthread.h>

#include <mutex>

namespace cnnext::ops {

// From now on a fork waits until no thread holds the mutex. Of two that are held at once, the one that is
// taken first must be registered last: forks take them in that order too.
template <std::mutex& (*mutex)()>
void hold_in_forks() {
  pthread_atfork([] { mutex().lock(); }, [] { mutex().unlock(); }, [] { mutex().unlock(); });
}

}  // namespace cnnext::ops
