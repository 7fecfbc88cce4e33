//! Files beyond 4 GiB, as sparse files: they take no space and no time.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};

use super::super::torch;
use super::build::{directory, local_header, Pickle, Place, ZipRecord};
use crate::files::{Access, SourceFile};

const GIB: u64 = 1 << 30;

/// A torch file of two storages, the first larger than 4 GiB, read mapped whole, mapped in windows
/// and not mapped: tensors behind the first 4 GiB of the file, and of a storage. Its checksums are
/// left out, as torch can be told to: checking 5 GiB would take seconds.
#[test]
fn torch_file_beyond_4_gib() {
    let large_len = 5 * GIB as i64 / 2;
    let place = Place {
        storage_type: "HalfStorage",
        key: "0",
        storage_len: large_len,
        first: large_len - 4,
        shape: &[2, 2],
        strides: &[1, 2],
    };
    let table = Pickle::dict()
        .tensor("last", &place)
        .tensor(
            "small",
            &Place {
                storage_type: "FloatStorage",
                key: "1",
                storage_len: 2,
                first: 0,
                shape: &[2],
                strides: &[1],
            },
        )
        .end();
    let record = |name: &str, offset, size| ZipRecord {
        name: format!("big/{name}"),
        offset,
        size,
        crc32: 0,
        method: 0,
    };
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let mut records = Vec::new();
    let mut add = |file: &mut File, record: ZipRecord, tail: &[u8]| {
        file.seek(SeekFrom::Start(record.offset)).unwrap();
        let header = local_header(&record);
        file.write_all(&header).unwrap();
        let end = record.offset + header.len() as u64 + record.size;
        file.seek(SeekFrom::Start(end - tail.len() as u64)).unwrap();
        file.write_all(tail).unwrap();
        records.push(record);
        end
    };
    let end = add(
        file.as_file_mut(),
        record("data.pkl", 0, table.len() as u64),
        &table,
    );
    // f16: 1, 2, 3, 4, the last four of the storage
    let last: Vec<u8> = [0x3c00u16, 0x4000, 0x4200, 0x4400]
        .iter()
        .flat_map(|h| h.to_le_bytes())
        .collect();
    let end = add(file.as_file_mut(), record("data/0", end, 5 * GIB), &last);
    let small: Vec<u8> = [7.0f32, 8.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let end = add(file.as_file_mut(), record("data/1", end, 8), &small);
    file.write_all(&directory(&records, end)).unwrap();
    file.flush().unwrap();

    let mut accesses = vec![
        Access::new(true),
        Access::Mapped { whole_max: GIB },
        Access::Read,
    ];
    if cfg!(target_pointer_width = "32") && std::env::var_os("RWKV_EDGE_EMULATED").is_some() {
        println!("mapping is skipped: qemu 7.2 takes offsets of files modulo 4 GiB on 32-bit CPUs");
        accesses.retain(|access| matches!(access, Access::Read));
    }
    for access in accesses {
        let source = SourceFile::open_with(file.path(), access).unwrap();
        assert!(source.len() > 5 * GIB);
        let tensors = torch::read(&source).unwrap();
        assert_eq!(
            tensors[0].read_vector(4).unwrap(),
            [1.0, 3.0, 2.0, 4.0],
            "{access:?}"
        );
        assert!(tensors[1].offset > 5 * GIB);
        assert_eq!(tensors[1].read_vector(2).unwrap(), [7.0, 8.0], "{access:?}");
    }
}

/// A safetensors file whose second tensor starts beyond 4 GiB.
#[test]
#[cfg(target_pointer_width = "64")]
fn safetensors_file_beyond_4_gib() {
    let large = 6 * GIB;
    let header = format!(
        r#"{{"a":{{"dtype":"F32","shape":[{},1024],"data_offsets":[0,{large}]}},"b":{{"dtype":"F32","shape":[1],"data_offsets":[{large},{}]}}}}"#,
        large / 4096,
        large + 4
    );
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&super::build::safetensors(&header, &[]))
        .unwrap();
    file.seek(SeekFrom::Current(large as i64)).unwrap();
    file.write_all(&0.5f32.to_le_bytes()).unwrap();
    file.flush().unwrap();
    for access in [Access::new(true), Access::Read] {
        let source = SourceFile::open_with(file.path(), access).unwrap();
        let file = super::super::SafetensorsFile::open(source).unwrap();
        let mut row = [1.0; 1024];
        let a = file.tensor("a").unwrap().unwrap();
        a.read_rows(a.shape[0] - 1..a.shape[0], &mut row).unwrap();
        assert!(row.iter().all(|v| *v == 0.0));
        assert_eq!(
            file.tensor("b").unwrap().unwrap().read_vector(1).unwrap(),
            [0.5]
        );
    }
}
