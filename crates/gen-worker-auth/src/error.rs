//! Why a token is not believed.

use gen_worker_net::NetError;

/// Why a token was refused. No text holds a part of the token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// Its time has not come.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// It does not name the issuer that `SCHEDULER_JWT_ISSUER` asks for.
    #[error("the token names another issuer or none")]
    WrongIssuer,
    /// It does not name the audience that `SCHEDULER_JWT_AUDIENCE` asks for.
    #[error("the token names another audience or none")]
    WrongAudience,
    /// It names a key that is not published.
    #[error("the token's key is not published")]
    UnknownKey,
    /// It is not signed with RS256.
    #[error("the token is not signed with RS256")]
    Algorithm,
    /// It is no JSON Web Token with a key id.
    #[error("the token is no JSON Web Token with a key id")]
    Malformed,
    /// The key it names did not sign it.
    #[error("the token's signature is wrong")]
    Signature,
    /// No header can carry it.
    #[error("the token is not one word of plain ASCII, of at most 64 KiB")]
    NotABearer,
    /// The published keys could not be had a moment ago, and were not asked for again.
    #[error("the published keys could not be had a moment ago")]
    KeySetAwaited,
    /// The published keys cannot be had, so that nothing can be verified.
    #[error("the published keys cannot be had")]
    NoKeySet {
        /// How fetching them failed.
        #[source]
        source: NetError,
    },
    /// The file that `WORKER_JWT_FILE` names holds no token.
    #[error("no token can be read from the file that WORKER_JWT_FILE names")]
    File {
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}
