//! Model refs and input files to verified files on disk.
