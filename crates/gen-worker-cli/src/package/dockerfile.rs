//! A Dockerfile for an archive: `docker build - < my-worker.tar.gz`.

use gen_worker_wheel::{Device, ORT_VERSION, Packed, Wheel, onnx_runtime_for};

/// Taken where `cozy.toml` names no base.
const BASE: &str = "debian:bookworm-slim";

/// Where it is built. Its glibc is as old as that of `BASE`, so that the binary starts there and on newer ones.
const BUILDER: &str = concat!("rust:", env!("CARGO_PKG_RUST_VERSION"), "-slim-bookworm");

/// Where ONNX Runtime is fetched, with Python's own tools.
const FETCHER: &str = "python:3-slim-bookworm";

/// Where its library lies in the image.
const LIBRARY: &str = "/usr/local/lib/onnxruntime";

/// Processors that images are built for.
const PROCESSORS: [&str; 2] = ["x86_64", "aarch64"];

/// The text of one that builds `binary` and lays it upon `base`, with the ONNX Runtime that models run on; `None`: it has none.
pub(super) fn text(base: Option<&str>, binary: &str, runtime: Option<Device>) -> String {
    let base = base.unwrap_or(BASE);
    let fetched = runtime.map(fetched).unwrap_or_default();
    let laid = runtime.map(laid).unwrap_or_default();
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

{fetched}FROM ${{BASE}}
WORKDIR /app
COPY --from=build /worker /usr/local/bin/{binary}
{laid}COPY cozy.toml ./
COPY .cozy/manifest.json .cozy/manifest.json
# By number, so that the base needs to know no such user. What the worker writes goes below /tmp.
ENV WORKER_MODEL_CACHE_DIR=/tmp/cozy/models WORKER_RUN_DIR=/tmp/cozy/runs
USER 65532:65532
# Within the container only; with 0.0.0.0:9090 others see health and metrics too.
ENV WORKER_HTTP_ADDR=127.0.0.1:9090
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["/usr/local/bin/{binary}", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/{binary}"]
"#
    )
}

/// The stage that has the files of ONNX Runtime, those that `gen-worker ort install` puts into a project.
fn fetched(device: Device) -> String {
    let cases: String = PROCESSORS.iter().filter_map(|processor| fetching(device, processor)).collect();
    format!(
        r#"# ONNX Runtime {ORT_VERSION}, checked by digest.
FROM {FETCHER} AS onnxruntime
WORKDIR /onnxruntime
RUN set -eu; mkdir lib; case "$(uname -m)" in \
{cases}    *) echo "no ONNX Runtime is pinned for $(uname -m)" >&2; exit 1 ;; \
    esac

"#
    )
}

/// The commands for one processor; `None`: nobody has pinned it.
fn fetching(device: Device, processor: &str) -> Option<String> {
    let Wheel { requirement, platform, files, .. } = onnx_runtime_for(device, "linux", processor)?;
    let mut case = format!(
        "    {processor}) \\\n    python3 -m pip download --quiet --no-deps --only-binary=:all: --platform {platform} \\\n        \
         --python-version 3.11 --implementation cp --abi cp311 {requirement}; \\\n    \
         python3 -m zipfile -e *.whl .; rm *.whl; \\\n"
    );
    for Packed { path, name, sha256, .. } in files {
        case += &format!("    echo '{sha256}  {path}' | sha256sum -c -; mv {path} lib/{name}; \\\n");
    }
    Some(case + "    ;; \\\n")
}

fn laid(_: Device) -> String {
    format!(
        "COPY --from=onnxruntime /onnxruntime/lib/ {LIBRARY}/\nENV ORT_DYLIB_PATH={LIBRARY}/libonnxruntime.so\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_is_laid_upon_the_base_that_the_project_names() {
        let text = text(Some("registry.example/base:1"), "my-worker", None);
        let lines: Vec<&str> = text.lines().collect();
        for line in [
            "ARG BASE=registry.example/base:1",
            "COPY --from=build /worker /usr/local/bin/my-worker",
            "USER 65532:65532",
            "ENV WORKER_HTTP_ADDR=127.0.0.1:9090",
            "STOPSIGNAL SIGTERM",
            r#"ENTRYPOINT ["/usr/local/bin/my-worker"]"#,
        ] {
            assert!(lines.contains(&line), "`{line}` is missing in\n{text}");
        }
        let at = |start: &str| lines.iter().position(|line| line.starts_with(start)).unwrap();
        assert!(at("COPY Cargo.toml") < at("COPY . ."));
        assert!(at("USER") < at("ENTRYPOINT") && at("COPY --from=build") < at("USER"));
        let health = lines.iter().find(|line| line.starts_with("HEALTHCHECK ")).unwrap();
        assert!(health.ends_with(r#"CMD ["/usr/local/bin/my-worker", "health"]"#), "{health}");
        assert!(!text.contains("onnxruntime"), "{text}");
        assert!(super::text(None, "w", None).contains("ARG BASE=debian:bookworm-slim"));
    }

    #[test]
    fn a_worker_with_models_in_memory_has_the_pinned_library() {
        let of = |device| text(None, "w", Some(device));
        let (processor, card) = (of(Device::Cpu), of(Device::Cuda));
        for (text, arch, device) in [
            (&processor, "x86_64", Device::Cpu),
            (&processor, "aarch64", Device::Cpu),
            (&card, "x86_64", Device::Cuda),
        ] {
            let wheel = onnx_runtime_for(device, "linux", arch).unwrap();
            assert!(text.contains(wheel.requirement) && text.contains(wheel.platform), "{text}");
            for file in wheel.files {
                let checked = format!(
                    "echo '{}  {}' | sha256sum -c -; mv {} lib/{};",
                    file.sha256, file.path, file.path, file.name
                );
                assert!(text.contains(&checked), "`{checked}` is missing in\n{text}");
            }
        }
        assert!(!card.contains("aarch64)"), "{card}");
        for text in [processor, card] {
            let lines: Vec<&str> = text.lines().collect();
            let copied = lines.iter().position(|line| line.starts_with("COPY --from=onnxruntime ")).unwrap();
            assert_eq!(
                lines[copied],
                "COPY --from=onnxruntime /onnxruntime/lib/ /usr/local/lib/onnxruntime/"
            );
            assert_eq!(lines[copied + 1], "ENV ORT_DYLIB_PATH=/usr/local/lib/onnxruntime/libonnxruntime.so");
            assert!(lines[..copied].contains(&"FROM ${BASE}"), "{text}");
        }
    }
}
