// Memory in segments of whole huge pages, which are cut into blocks. Neighbours that are free are one block.
#pragma once

#if __has_include(<sys/mman.h>)
#include <sys/mman.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <map>
#include <set>
#include <utility>

#include "../geometry.h"

namespace cnnext::ops {

constexpr size_t kHugePage = size_t{1} << 21;  // bytes

// Whole huge pages, or null where the system has none. Mapped where it can do that: malloc may take them from
// a heap of which it gives nothing back that lies below a block in use.
#if defined(MAP_ANONYMOUS)
inline void* map_segment(size_t bytes) {
  char* mapped = static_cast<char*>(
      mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (mapped == MAP_FAILED) return nullptr;
  const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(mapped) % kHugePage) % kHugePage;
  char* segment = mapped + before;
  if (before > 0) munmap(mapped, before);
  munmap(segment + bytes, kHugePage - before);
#if defined(MADV_HUGEPAGE)
  madvise(segment, bytes, MADV_HUGEPAGE);  // a wish: its failure is none
#endif
  return segment;
}
inline void unmap_segment(void* segment, size_t bytes) { munmap(segment, bytes); }
#else
inline void* map_segment(size_t bytes) {
  void* segment = nullptr;
  return posix_memalign(&segment, kHugePage, bytes) == 0 ? segment : nullptr;
}
inline void unmap_segment(void* segment, size_t) { std::free(segment); }
#endif

class Heap {
 public:
  // The smallest free block that suffices, or null.
  void* take(size_t bytes) {
    const auto found = free_.lower_bound({bytes, nullptr});
    return found == free_.end() ? nullptr : cut(blocks_.find(found->second), bytes);
  }
  // A block of a new segment, or null where the system has none.
  void* take_new(size_t bytes) {
    const size_t size = round_up(bytes, kHugePage);
    void* segment = map_segment(size);
    if (!segment) return nullptr;
    held_ += size;
    waiting_ += size;
    whole_ += size;
    const auto block = blocks_.emplace(static_cast<char*>(segment), Block{size, true, true}).first;
    free_.emplace(size, block->first);
    return cut(block, bytes);
  }
  bool owns(void* block) const { return blocks_.count(static_cast<char*>(block)) > 0; }
  void put(void* address) {
    auto block = blocks_.find(static_cast<char*>(address));
    waiting_ += block->second.size;
    block->second.free = true;
    const auto next = std::next(block);
    if (next != blocks_.end() && joins(next)) block = join(block, next);
    if (!block->second.first && std::prev(block)->second.free) block = join(std::prev(block), block);
    free_.emplace(block->second.size, block->first);
    if (is_whole(block)) whole_ += block->second.size;
  }
  // Gives segments of which no block is in use back to the system, the largest first, until this many bytes
  // are given.
  void release(size_t bytes) {
    for (auto last = free_.end(); bytes > 0 && last != free_.begin();) {
      const auto block = blocks_.find((--last)->second);
      if (!is_whole(block)) continue;
      const size_t size = block->second.size;
      held_ -= size;
      waiting_ -= size;
      whole_ -= size;
      bytes -= size < bytes ? size : bytes;
      unmap_segment(block->first, size);
      blocks_.erase(block);
      last = free_.erase(last);
    }
  }

  size_t held() const { return held_; }        // bytes of all segments
  size_t waiting() const { return waiting_; }  // of these in free blocks
  size_t whole() const { return whole_; }      // of these in segments that are free as a whole

 private:
  static constexpr size_t kLeast = 4096;  // bytes of a block that is cut off

  struct Block {
    size_t size;
    bool free, first;  // of a segment
  };
  using Blocks = std::map<char*, Block>;

  bool joins(Blocks::iterator next) const { return next->second.free && !next->second.first; }
  bool is_whole(Blocks::iterator block) const {
    const auto next = std::next(block);
    return block->second.first && (next == blocks_.end() || next->second.first);
  }

  void* cut(Blocks::iterator block, size_t bytes) {
    free_.erase({block->second.size, block->first});
    if (is_whole(block)) whole_ -= block->second.size;
    const size_t rest = block->second.size - bytes;
    if (rest >= kLeast) {
      block->second.size = bytes;
      blocks_.emplace_hint(std::next(block), block->first + bytes, Block{rest, true, false});
      free_.emplace(rest, block->first + bytes);
    }
    block->second.free = false;
    waiting_ -= block->second.size;
    return block->first;
  }
  Blocks::iterator join(Blocks::iterator block, Blocks::iterator next) {
    for (const auto each : {block, next}) free_.erase({each->second.size, each->first});
    block->second.size += next->second.size;
    blocks_.erase(next);
    return block;
  }

  Blocks blocks_;
  std::set<std::pair<size_t, char*>> free_;
  size_t held_ = 0, waiting_ = 0, whole_ = 0;
};

}  // namespace cnnext::ops
