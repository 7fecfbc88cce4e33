//! Small files of each format, put together by hand so that any part can be wrong.

/// A safetensors file of a header and its data.
pub(super) fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// A pickled program, instruction by instruction.
pub(super) struct Pickle(pub(super) Vec<u8>);

impl Pickle {
    /// A dictionary with its entries still to come.
    pub(super) fn dict() -> Self {
        Pickle(b"\x80\x02}(".to_vec())
    }

    pub(super) fn text(mut self, text: &str) -> Self {
        self.0.push(b'X');
        self.0.extend((text.len() as u32).to_le_bytes());
        self.0.extend(text.as_bytes());
        self
    }

    pub(super) fn int(mut self, number: i64) -> Self {
        self.0.extend([0x8a, 8]);
        self.0.extend(number.to_le_bytes());
        self
    }

    pub(super) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn tuple(mut self, numbers: &[i64]) -> Self {
        self.0.push(b'(');
        numbers.iter().fold(self, |p, &n| p.int(n)).raw(b"t")
    }

    /// A tensor under a name, as torch writes it.
    pub(super) fn tensor(self, name: &str, place: &Place<'_>) -> Self {
        self.text(name)
            .raw(b"ctorch._utils\n_rebuild_tensor_v2\n((")
            .text("storage")
            .raw(b"ctorch\n")
            .raw(place.storage_type.as_bytes())
            .raw(b"\n")
            .text(place.key)
            .text("cpu")
            .int(place.storage_len)
            .raw(b"tQ")
            .int(place.first)
            .tuple(place.shape)
            .tuple(place.strides)
            .raw(b"\x89ccollections\nOrderedDict\n)RtR")
    }

    /// Fills the dictionary and stops.
    pub(super) fn end(self) -> Vec<u8> {
        self.raw(b"u.").0
    }
}

/// Where a pickled tensor says it is.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) storage_type: &'a str,
    pub(super) key: &'a str,
    pub(super) storage_len: i64,
    pub(super) first: i64,
    pub(super) shape: &'a [i64],
    pub(super) strides: &'a [i64],
}

/// A record of a zip archive, and what its directory says about it.
#[derive(Clone)]
pub(super) struct ZipRecord {
    pub(super) name: String,
    pub(super) offset: u64,
    pub(super) size: u64,
    pub(super) crc32: u32,
    pub(super) method: u16,
}

pub(super) fn local_header(record: &ZipRecord) -> Vec<u8> {
    let mut bytes = b"PK\x03\x04\0\0\x08\x08".to_vec();
    bytes.extend(record.method.to_le_bytes());
    bytes.extend([0; 16]);
    bytes.extend((record.name.len() as u16).to_le_bytes());
    bytes.extend([0; 2]);
    bytes.extend(record.name.as_bytes());
    bytes
}

/// The directory of an archive, with 64-bit numbers throughout, to be written at `start`.
pub(super) fn directory(records: &[ZipRecord], start: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for record in records {
        bytes.extend(b"PK\x01\x02\0\0\0\0\x08\x08");
        bytes.extend(record.method.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(record.crc32.to_le_bytes());
        bytes.extend([0xff; 8]);
        bytes.extend((record.name.len() as u16).to_le_bytes());
        bytes.extend(28u16.to_le_bytes());
        bytes.extend([0; 10]);
        bytes.extend([0xff; 4]);
        bytes.extend(record.name.as_bytes());
        bytes.extend([1, 0, 24, 0]);
        for number in [record.size, record.size, record.offset] {
            bytes.extend(number.to_le_bytes());
        }
    }
    let size = bytes.len() as u64;
    let count = records.len() as u64;
    bytes.extend(b"PK\x06\x06");
    bytes.extend(44u64.to_le_bytes());
    bytes.extend([0; 12]);
    for number in [count, count, size, start] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend(b"PK\x06\x07\0\0\0\0");
    bytes.extend((start + size).to_le_bytes());
    bytes.extend([1, 0, 0, 0]);
    bytes.extend(b"PK\x05\x06\0\0\0\0");
    bytes.extend([0xff; 12]);
    bytes.extend([0; 2]);
    bytes
}

/// An archive of these records, with `change` applied to what its directory says.
pub(super) fn zip_with(
    contents: &[(&str, &[u8])],
    change: impl FnOnce(&mut Vec<ZipRecord>),
) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut records = Vec::new();
    for (name, content) in contents {
        let record = ZipRecord {
            name: (*name).to_owned(),
            offset: bytes.len() as u64,
            size: content.len() as u64,
            crc32: crc32fast::hash(content),
            method: 0,
        };
        bytes.extend(local_header(&record));
        bytes.extend_from_slice(content);
        records.push(record);
    }
    change(&mut records);
    let directory = directory(&records, bytes.len() as u64);
    bytes.extend(directory);
    bytes
}

pub(super) fn zip(contents: &[(&str, &[u8])]) -> Vec<u8> {
    zip_with(contents, |_| {})
}

/// A tensor of a safetensors file.
#[derive(Clone)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) dtype: &'static str,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: Vec<u8>,
}

/// The tensors of the tiny model of the fixtures.
pub(super) fn tiny_model() -> Vec<Part> {
    let path = super::fixture("checkpoints/raw.safetensors");
    let checkpoint = super::open(&path, true).unwrap();
    let part = |(name, tensor): (&String, &super::super::RawTensor)| Part {
        name: name.clone(),
        dtype: "F32",
        shape: tensor.shape.clone(),
        bytes: tensor.contiguous_bytes().unwrap().unwrap().to_vec(),
    };
    checkpoint.tensors.iter().map(part).collect()
}

/// A safetensors file of these tensors.
pub(super) fn safetensors_of(parts: &[Part]) -> Vec<u8> {
    let mut entries = Vec::new();
    let mut data = Vec::new();
    for part in parts {
        let begin = data.len();
        data.extend_from_slice(&part.bytes);
        entries.push(format!(
            r#""{}":{{"dtype":"{}","shape":{:?},"data_offsets":[{begin},{}]}}"#,
            part.name,
            part.dtype,
            part.shape,
            data.len()
        ));
    }
    safetensors(&format!("{{{}}}", entries.join(",")), &data)
}

/// The tiny model after a change to the tensor of that name.
pub(super) fn changed(name: &str, change: impl FnOnce(&mut Part)) -> Vec<u8> {
    let mut parts = tiny_model();
    change(parts.iter_mut().find(|part| part.name == name).unwrap());
    safetensors_of(&parts)
}

/// The tiny model with one more tensor, of two numbers.
pub(super) fn with_extra(name: &str) -> Vec<u8> {
    let mut parts = tiny_model();
    parts.push(Part {
        name: name.to_owned(),
        dtype: "F32",
        shape: vec![2],
        bytes: vec![0; 8],
    });
    safetensors_of(&parts)
}

/// A torch file of a table and two storages: key 0 of four f32, key 1 of four f16.
pub(super) fn torch(table: Vec<u8>) -> Vec<u8> {
    zip(&[
        ("m/data.pkl", &table),
        ("m/byteorder", b"little"),
        ("m/data/0", &[0; 16]),
        ("m/data/1", &[0; 8]),
    ])
}

/// A sound place in key 0 of [`torch`].
pub(super) const PLACE: Place<'static> = Place {
    storage_type: "FloatStorage",
    key: "0",
    storage_len: 4,
    first: 0,
    shape: &[2, 2],
    strides: &[2, 1],
};
