//! The allocator of a worker's program.

use mimalloc::MiMalloc;

/// Much of what a run needs is taken by one thread and given back by another. The system's allocator has a lock for that.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;
