//! What original implementations did, as recorded (`conformance/README.md`).
use std::collections::{BTreeMap, HashMap};
use std::fs;

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use super::Dtype;

/// A value of every step: the first dimension counts them.
pub struct Stack {
    /// Of one row.
    pub shape: Vec<usize>,
    pub rows: Vec<Vec<u8>>,
}

/// A file: values as text, and tensors that are all of one dtype.
pub struct Recording {
    meta: HashMap<String, String>,
    pub dtype: Dtype,
    tensors: HashMap<String, Stack>,
}

impl Recording {
    fn read(bytes: &[u8]) -> Self {
        let (_, header) = SafeTensors::read_metadata(bytes).expect("a safetensors header");
        let meta = header.metadata().clone().expect("metadata");
        let file = SafeTensors::deserialize(bytes).expect("a safetensors file");
        let stack = |view: TensorView| {
            let (steps, shape) = view.shape().split_first().expect("a dimension of steps");
            let rows = view.data().chunks(view.data().len() / steps).map(<[u8]>::to_vec).collect();
            Stack { shape: shape.to_vec(), rows }
        };
        let dtype = dtype(&meta["dtype"]);
        let tensors = file.tensors().into_iter().map(|(name, view)| (name, stack(view))).collect();
        Self { meta, dtype, tensors }
    }

    /// Those of a folder of `conformance`, by name; there are some.
    pub fn all(folder: &str) -> Vec<Self> {
        // As cargo sets it for the run: the tests may have been built elsewhere.
        let root = std::env::var("CARGO_MANIFEST_DIR").expect("the folder of this package");
        let folder = format!("{root}/tests/conformance/{folder}");
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder}: {error}"));
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| path.extension().is_some_and(|end| end == "safetensors"));
        paths.sort();
        assert!(!paths.is_empty(), "no recordings in {folder}");
        paths.iter().map(|path| Self::read(&fs::read(path).unwrap())).collect()
    }

    pub fn name(&self) -> &str {
        self.text("name")
    }

    pub fn text(&self, key: &str) -> &str {
        self.meta.get(key).unwrap_or_else(|| panic!("{:?} has no {key}", self.meta.get("name")))
    }

    pub fn list(&self, key: &str) -> Vec<&str> {
        self.text(key).split_whitespace().collect()
    }

    pub fn numbers(&self, key: &str) -> Vec<f64> {
        self.list(key).into_iter().map(|word| word.parse().unwrap()).collect()
    }

    pub fn count(&self, key: &str) -> usize {
        self.text(key).parse().unwrap()
    }

    /// Of a parameter; `None` if that is what it says, or if there is no such key.
    pub fn number(&self, key: &str) -> Option<f64> {
        let word = self.meta.get(key).filter(|word| *word != "None")?;
        Some(word.parse().unwrap())
    }

    pub fn stack(&self, name: &str) -> &Stack {
        self.tensors.get(name).unwrap_or_else(|| panic!("{} has no {name}", self.name()))
    }

    /// All values whose key begins with `prefix`, without it.
    pub fn section(&self, prefix: &str) -> BTreeMap<String, String> {
        let own = |(key, value): (&String, &String)| {
            Some((key.strip_prefix(prefix)?.to_owned(), value.clone()))
        };
        self.meta.iter().filter_map(own).collect()
    }
}

/// By its name in metadata and in text options.
pub fn dtype(name: &str) -> Dtype {
    match name {
        "f32" => Dtype::F32,
        "f16" => Dtype::F16,
        "bf16" => Dtype::Bf16,
        _ => panic!("no dtype is named {name}"),
    }
}
