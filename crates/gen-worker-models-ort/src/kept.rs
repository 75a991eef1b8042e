//! What makes a model come back cheaply: its graph, optimised once, on disk, and its weights, shared by all its sessions, in
//! main memory.
//!
//! ```text
//! <folder of the graph>/.ort/<version>-<provider>/<name>-<size>-<time>/graph.onnx    the optimised graph
//!                                                                     /weights.bin   its weights
//! ```

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::Arc,
    time::UNIX_EPOCH,
};

use half::{bf16, f16};
use ort::value::{DynValue, PrimitiveTensorElementType, Tensor};
use prost::Message;

const GRAPH: &str = "graph.onnx";
pub(crate) const WEIGHTS: &str = "weights.bin";

/// An optimised graph with its weights.
#[derive(Debug)]
pub(crate) struct Kept {
    /// The graph's file. What is not among the weights the library reads from the file beside it.
    pub(crate) graph: PathBuf,
    pub(crate) weights: Vec<(String, Arc<DynValue>)>,
    /// Bytes of main memory.
    pub(crate) bytes: u64,
}

/// Why a graph is not kept. It runs nevertheless.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeepError {
    #[error("its optimised form cannot be written or read")]
    Io(#[from] io::Error),
    #[error("its optimised form is no ONNX graph")]
    Graph(#[from] prost::DecodeError),
    #[error("its weights are not where the graph says")]
    Weights,
    #[error("it cannot be optimised")]
    Ort(#[from] ort::Error),
}

/// Where the optimised form of a graph is kept. Another file at the same place has another.
pub(crate) fn place(file: &Path, version: &str, provider: &str) -> io::Result<PathBuf> {
    let facts = fs::metadata(file)?;
    let changed = facts.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let name = file.file_stem().unwrap_or_default().to_string_lossy();
    let own = format!("{name}-{}-{changed}", facts.len());
    Ok(file.with_file_name(".ort").join(format!("{version}-{provider}")).join(own))
}

impl Kept {
    /// Reads what is kept at a place. If that is nothing, or damaged, it is written anew by `export`, which is given the
    /// graph's file.
    pub(crate) fn at(place: &Path, export: impl FnOnce(&Path) -> ort::Result<()>) -> Result<Self, KeepError> {
        if place.join(GRAPH).exists() {
            match Self::read(place) {
                Err(error) if error.is_damage() => discard(place)?,
                read => return read,
            }
        }
        write(place, export)?;
        Self::read(place)
    }

    /// Takes it off the disk, because it is of no use. Whoever has it in memory keeps it.
    pub(crate) fn discard(&self) -> io::Result<()> {
        self.graph.parent().map_or(Ok(()), discard)
    }

    fn read(place: &Path) -> Result<Self, KeepError> {
        let graph = place.join(GRAPH);
        let model = onnx::Model::decode(&*fs::read(&graph)?)?;
        let mut kept = Self { graph, weights: Vec::new(), bytes: 0 };
        let mut file = None;
        for tensor in model.graph.unwrap_or_default().initializers {
            let Some((offset, length)) = tensor.place() else { continue };
            let file = match &mut file {
                Some(file) => file,
                none => none.insert(File::open(place.join(WEIGHTS))?),
            };
            let end = offset.checked_add(length).ok_or(KeepError::Weights)?;
            if end > file.metadata()?.len() {
                return Err(KeepError::Weights);
            }
            let mut bytes = vec![0; usize::try_from(length).map_err(|_| KeepError::Weights)?];
            file.seek(SeekFrom::Start(offset))?;
            file.read_exact(&mut bytes)?;
            if let Some(value) = tensor.value(&bytes)? {
                kept.weights.push((tensor.name, Arc::new(value)));
                kept.bytes += length;
            }
        }
        Ok(kept)
    }
}

impl KeepError {
    /// Whether what is on the disk will never be of use.
    fn is_damage(&self) -> bool {
        match self {
            Self::Graph(_) | Self::Weights => true,
            Self::Io(error) => error.kind() == io::ErrorKind::NotFound,
            Self::Ort(_) => false,
        }
    }
}

fn write(place: &Path, export: impl FnOnce(&Path) -> ort::Result<()>) -> Result<(), KeepError> {
    let parent = place.parent().ok_or(KeepError::Weights)?;
    fs::create_dir_all(parent)?;
    let building = tempfile::tempdir_in(parent)?;
    export(&building.path().join(GRAPH))?;
    match fs::rename(building.path(), place) {
        // Another process was faster.
        Err(_) if place.join(GRAPH).exists() => Ok(()),
        renamed => Ok(renamed?),
    }
}

/// Other processes see all of a place or nothing.
fn discard(place: &Path) -> io::Result<()> {
    let Some(parent) = place.parent() else { return Ok(()) };
    let aside = tempfile::tempdir_in(parent)?;
    match fs::rename(place, aside.path().join("damaged")) {
        // Another process was faster.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        renamed => renamed,
    }
}

impl onnx::Tensor {
    /// The offset and length of its data in the file of weights; `None`: it is in the graph.
    fn place(&self) -> Option<(u64, u64)> {
        let entry =
            |key: &str| self.external_data.iter().find(|entry| entry.key == key).map(|entry| &*entry.value);
        let number = |key| entry(key).and_then(|text| text.parse().ok());
        (entry("location")? == WEIGHTS).then_some(())?;
        Some((number("offset").unwrap_or(0), number("length")?))
    }

    /// `None`: it is of a type that the library reads itself.
    fn value(&self, bytes: &[u8]) -> Result<Option<DynValue>, KeepError> {
        // The numbers are those of `TensorProto.DataType`.
        let value = match self.data_type {
            1 => self.array(bytes, f32::from_le_bytes),
            2 => self.array(bytes, u8::from_le_bytes),
            3 => self.array(bytes, i8::from_le_bytes),
            4 => self.array(bytes, u16::from_le_bytes),
            5 => self.array(bytes, i16::from_le_bytes),
            6 => self.array(bytes, i32::from_le_bytes),
            7 => self.array(bytes, i64::from_le_bytes),
            9 => self.array(bytes, |[byte]| byte != 0),
            10 => self.array(bytes, f16::from_le_bytes),
            11 => self.array(bytes, f64::from_le_bytes),
            12 => self.array(bytes, u32::from_le_bytes),
            13 => self.array(bytes, u64::from_le_bytes),
            16 => self.array(bytes, bf16::from_le_bytes),
            _ => return Ok(None),
        };
        value.map(Some)
    }

    fn array<T: PrimitiveTensorElementType + std::fmt::Debug + Clone + 'static, const N: usize>(
        &self,
        bytes: &[u8],
        read: impl Fn([u8; N]) -> T,
    ) -> Result<DynValue, KeepError> {
        let (elements, rest) = bytes.as_chunks::<N>();
        let data: Vec<T> = elements.iter().map(|element| read(*element)).collect();
        let count = self.dims.iter().try_fold(1_i64, |count, length| count.checked_mul(*length));
        if !rest.is_empty() || count.and_then(|count| usize::try_from(count).ok()) != Some(data.len()) {
            return Err(KeepError::Weights);
        }
        Ok(Tensor::from_array((self.dims.clone(), data))?.into_dyn())
    }
}

/// Of `onnx.proto3` what says where weights are.
mod onnx {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Model {
        #[prost(message, optional, tag = "7")]
        pub(super) graph: Option<Graph>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Graph {
        #[prost(message, repeated, tag = "5")]
        pub(super) initializers: Vec<Tensor>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Tensor {
        #[prost(int64, repeated, tag = "1")]
        pub(super) dims: Vec<i64>,
        #[prost(int32, tag = "2")]
        pub(super) data_type: i32,
        #[prost(string, tag = "8")]
        pub(super) name: String,
        #[prost(message, repeated, tag = "13")]
        pub(super) external_data: Vec<Entry>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Entry {
        #[prost(string, tag = "1")]
        pub(super) key: String,
        #[prost(string, tag = "2")]
        pub(super) value: String,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(dims: &[i64], data_type: i32, entries: &[(&str, &str)]) -> onnx::Tensor {
        let entry = |(key, value): &(&str, &str)| onnx::Entry { key: (*key).into(), value: (*value).into() };
        onnx::Tensor {
            dims: dims.to_vec(),
            data_type,
            name: "w".into(),
            external_data: entries.iter().map(entry).collect(),
        }
    }

    /// A graph with this one tensor, beside four numbers.
    fn kept(tensor: onnx::Tensor) -> Result<Kept, KeepError> {
        let place = tempfile::tempdir().unwrap();
        let model = onnx::Model { graph: Some(onnx::Graph { initializers: vec![tensor] }) };
        fs::write(place.path().join(GRAPH), model.encode_to_vec()).unwrap();
        fs::write(place.path().join(WEIGHTS), [1_u8, 2, 3, 4]).unwrap();
        Kept::read(place.path())
    }

    #[test]
    fn a_graph_that_lies_about_its_weights_is_not_believed() {
        crate::library::for_tests();
        let at = |offset, length| [("location", WEIGHTS), ("offset", offset), ("length", length)];
        let read = kept(tensor(&[3], 2, &at("1", "3"))).unwrap();
        assert_eq!((read.bytes, &*read.weights[0].0), (3, "w"));
        assert_eq!(read.weights[0].1.try_extract_array::<u8>().unwrap().as_slice(), Some(&[2, 3, 4][..]));
        for (dims, data_type, place) in [
            (&[4][..], 2, at("1", "3")),
            (&[2], 1, at("0", "4")),
            (&[-1], 2, at("0", "1")),
            (&[1 << 40, 1 << 40], 2, at("0", "4")),
            (&[4], 2, at("1", "4")),
            (&[4], 2, at("18446744073709551615", "4")),
        ] {
            assert!(matches!(kept(tensor(dims, data_type, &place)), Err(KeepError::Weights)), "{dims:?}");
        }
        assert_eq!(kept(tensor(&[1], 8, &at("0", "4"))).unwrap().bytes, 0, "texts are the library's");
        assert_eq!(kept(tensor(&[1], 2, &[])).unwrap().bytes, 0, "what is in the graph stays there");
    }
}
