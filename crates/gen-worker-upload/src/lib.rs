//! What a run leaves behind: file API, presigned PUT.
