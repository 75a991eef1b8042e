//! Tests of the whole worker against scripted peers on loopback.
