//! A Dockerfile for an archive: `docker build - < my-worker.tar.gz`.

/// Taken where `cozy.toml` names no base.
const BASE: &str = "debian:bookworm-slim";

/// Where it is built. Its glibc is as old as that of `BASE`, so that the binary starts there and on newer ones.
const BUILDER: &str = concat!("rust:", env!("CARGO_PKG_RUST_VERSION"), "-slim-bookworm");

/// The text of one that builds `binary` and lays it upon `base`.
pub(super) fn text(base: Option<&str>, binary: &str) -> String {
    let base = base.unwrap_or(BASE);
    format!(
        r#"# Written by `gen-worker package`. To build it: docker build - < {binary}.tar.gz
# The base must have a glibc as new as the builder's; give another builder with --build-arg BUILDER=….
ARG BUILDER={BUILDER}
ARG BASE={base}

FROM ${{BUILDER}} AS build
RUN apt-get update && apt-get install --no-install-recommends -y cmake g++ make && rm -rf /var/lib/apt/lists/*
WORKDIR /build

# Dependencies are a layer of their own, which code that changes leaves alone.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src && echo 'fn main() {{}}' > src/main.rs && cargo build --release --locked ; rm -rf src

# Files in the archive have no date: without one cargo would take them for what is built already.
COPY . .
RUN find . -name '*.rs' -not -path './target/*' -exec touch {{}} + \
    && cargo build --release --locked --bin {binary} \
    && cp target/release/{binary} /worker

FROM ${{BASE}}
WORKDIR /app
COPY --from=build /worker /usr/local/bin/{binary}
COPY cozy.toml ./
COPY .cozy/manifest.json .cozy/manifest.json
# By number, so that the base needs to know no such user. What the worker writes goes below /tmp.
ENV WORKER_MODEL_CACHE_DIR=/tmp/cozy/models WORKER_RUN_DIR=/tmp/cozy/runs
USER 65532:65532
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/{binary}"]
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_is_laid_upon_the_base_that_the_project_names() {
        let text = text(Some("registry.example/base:1"), "my-worker");
        let lines: Vec<&str> = text.lines().collect();
        for line in [
            "ARG BASE=registry.example/base:1",
            "COPY --from=build /worker /usr/local/bin/my-worker",
            "USER 65532:65532",
            "STOPSIGNAL SIGTERM",
            r#"ENTRYPOINT ["/usr/local/bin/my-worker"]"#,
        ] {
            assert!(lines.contains(&line), "`{line}` is missing in\n{text}");
        }
        let at = |start: &str| lines.iter().position(|line| line.starts_with(start)).unwrap();
        assert!(at("COPY Cargo.toml") < at("COPY . ."));
        assert!(super::text(None, "w").contains("ARG BASE=debian:bookworm-slim"));
    }
}
