//! Names of things, each parsed once into its own type.

use std::{fmt, sync::Arc};

/// Longest identifier accepted, in bytes. Schedulers send UUIDs or short names; this bounds logs, paths and maps.
const MAX_ID_BYTES: usize = 256;

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    /// The text is empty.
    #[error("{what} is empty")]
    Empty {
        /// Which identifier.
        what: &'static str,
    },
    /// The text is longer than 256 bytes.
    #[error("{what} has {length} bytes, at most {MAX_ID_BYTES} are allowed")]
    TooLong {
        /// Which identifier.
        what: &'static str,
        /// Its length in bytes.
        length: usize,
    },
    /// The text holds a control character.
    #[error("{what} holds a control character")]
    ControlCharacter {
        /// Which identifier.
        what: &'static str,
    },
}

fn check(what: &'static str, text: &str) -> Result<(), IdError> {
    if text.is_empty() {
        Err(IdError::Empty { what })
    } else if text.len() > MAX_ID_BYTES {
        Err(IdError::TooLong { what, length: text.len() })
    } else if text.chars().any(char::is_control) {
        Err(IdError::ControlCharacter { what })
    } else {
        Ok(())
    }
}

macro_rules! identifiers {
    ($($(#[$doc:meta])* $name:ident = $what:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes a text as this identifier.
            ///
            /// # Errors
            /// The text is empty, longer than 256 bytes, or holds a control character.
            pub fn parse(text: &str) -> Result<Self, IdError> {
                check($what, text).map(|()| Self(text.into()))
            }

            /// The text as it was given.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    )*};
}

identifiers! {
    /// One request to run a function, named by the scheduler.
    RunId = "run id";
    /// One worker process.
    WorkerId = "worker id";
    /// The deployment that a worker serves.
    DeploymentId = "deployment id";
    /// Whose run it is.
    TenantId = "tenant id";
    /// Which of the tenant's users asked.
    UserId = "user id";
    /// A function as the wire names it.
    FunctionName = "function name";
}

impl RunId {
    /// A name for this run's directory that cannot leave its parent: a readable part and a hash of the whole id, so that
    /// two ids never share a directory.
    pub fn directory_name(&self) -> String {
        let readable: String = self
            .as_str()
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '_' })
            .take(48)
            .collect();
        let hash = blake3::hash(self.as_str().as_bytes()).to_hex();
        format!("{readable}-{}", &hash[..16])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_id_cannot_leave_its_directory() {
        let name = RunId::parse("../../etc/passwd").unwrap().directory_name();
        assert!(!name.contains('/') && !name.contains(".."), "{name}");
        assert_ne!(name, RunId::parse(".././etc/passwd").unwrap().directory_name());
    }

    #[test]
    fn refuses_what_is_no_name() {
        assert_eq!(RunId::parse(""), Err(IdError::Empty { what: "run id" }));
        assert!(matches!(RunId::parse("a\nb"), Err(IdError::ControlCharacter { .. })));
        assert!(matches!(RunId::parse(&"x".repeat(257)), Err(IdError::TooLong { length: 257, .. })));
    }
}
