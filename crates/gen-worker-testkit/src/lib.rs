//! Scripted peers and faults for testing gen-worker and its tenants.
