//! Who a worker is and whom it believes: JWKS, RS256 verification, the bearer token.
