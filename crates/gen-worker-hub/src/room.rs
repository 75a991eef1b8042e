//! Whether the disk has room.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

use crate::error::HubError;

/// What is left free: other files on the disk grow while a model comes.
const RESERVE_BYTES: u64 = 16 << 20;

/// Whether this many more bytes fit where `path` lies; its directory exists. Blocks.
pub(crate) fn check(path: &Path, need: u64) -> Result<(), HubError> {
    if need == 0 {
        return Ok(());
    }
    let have = free(path.parent().unwrap_or(path))?;
    if have < need.saturating_add(RESERVE_BYTES) {
        return Err(HubError::NoRoom { need, have });
    }
    Ok(())
}

/// How many bytes of `need` do not fit. Blocks.
pub(crate) fn shortfall(directory: &Path, need: u64) -> io::Result<u64> {
    if need == 0 {
        return Ok(0);
    }
    Ok(need.saturating_add(RESERVE_BYTES).saturating_sub(free(directory)?))
}

fn free(directory: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(directory)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// What a file takes on disk, which for one in the making may be less than its length.
pub(crate) fn allocated(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |found| (found.blocks() * 512).min(found.len()))
}
