//! The endpoints of the stand-in that take files: repositories made, objects stored, commits.

use serde_json::{json, Value};

use super::wire::{Answer, Request};
use super::{etag, git_sha1, is_large, sha256, token, Files, Repository, State};

impl State {
    pub fn who_am_i(&self, request: &Request) -> Answer {
        match token(request) {
            Some("writer") => Answer::json(&json!({ "name": "me", "type": "user" })),
            _ => Answer::error(401, "", "Invalid username or password."),
        }
    }

    fn may_write(request: &Request) -> Option<Answer> {
        match token(request) {
            Some("writer") => None,
            Some("reader") => Some(Answer::error(403, "", "this token may only read")),
            _ => Some(Answer::error(401, "", "Invalid username or password.")),
        }
    }

    pub fn create(&mut self, request: &Request) -> Answer {
        if let Some(refused) = Self::may_write(request) {
            return refused;
        }
        let asked: Value = serde_json::from_slice(&request.body).expect("JSON");
        assert!(
            asked.get("type").is_none_or(|kind| kind == "model"),
            "{asked}"
        );
        let of = |key: &str| asked[key].as_str().expect("a name").to_owned();
        let name = format!("{}/{}", of("organization"), of("name"));
        if self.repositories.contains_key(&name) {
            return Answer::error(409, "", "You already created this model repo");
        }
        self.repositories
            .insert(name.clone(), Repository::default());
        Answer::json(&json!({ "url": format!("{}/{name}", self.hub) }))
    }

    pub fn preupload(&self, request: &Request, name: &str) -> Answer {
        if let Some(refused) = Self::may_write(request) {
            return refused;
        }
        let asked: Value = serde_json::from_slice(&request.body).expect("JSON");
        let there = self.repositories[name].commit_of("main");
        let there = there.map(|commit| &self.repositories[name].commits[&commit]);
        let entry = |file: &Value| {
            let path = file["path"].as_str().expect("a path");
            assert!(
                file["sample"].is_string() && file["size"].is_u64(),
                "{file}"
            );
            let oid = there
                .and_then(|files| files.get(path))
                .map(|bytes| etag(path, bytes));
            let mode = if is_large(path, b"x") {
                "lfs"
            } else {
                "regular"
            };
            json!({
                "path": path, "uploadMode": mode, "shouldIgnore": path.ends_with(".pyc"), "oid": oid,
            })
        };
        let files: Vec<Value> = asked["files"]
            .as_array()
            .expect("files")
            .iter()
            .map(entry)
            .collect();
        Answer::json(&json!({ "files": files }))
    }

    pub fn batch(&self, request: &Request, _name: &str) -> Answer {
        if let Some(refused) = Self::may_write(request) {
            return refused;
        }
        let asked: Value = serde_json::from_slice(&request.body).expect("JSON");
        assert_eq!(request.headers["accept"], "application/vnd.git-lfs+json");
        assert_eq!(
            (&asked["operation"], &asked["hash_algo"]),
            (&json!("upload"), &json!("sha256"))
        );
        let entry = |object: &Value| {
            let (oid, size) = (
                object["oid"].as_str().expect("an oid"),
                object["size"].as_u64(),
            );
            let mut answer = json!({ "oid": oid, "size": size });
            if !self.objects.contains_key(oid) {
                answer["actions"] = self.actions(oid, size.expect("a size") as usize);
            }
            answer
        };
        let objects = asked["objects"].as_array().expect("objects").iter();
        Answer::json(
            &json!({ "transfer": "basic", "objects": objects.map(entry).collect::<Vec<_>>() }),
        )
    }

    fn actions(&self, oid: &str, size: usize) -> Value {
        let (hub, storage) = (&self.hub, &self.storage);
        let upload = match self.part_bytes.filter(|part_bytes| size > *part_bytes) {
            None => json!({ "href": format!("{storage}/objects/{oid}"), "header": {} }),
            Some(part_bytes) => {
                let mut header = json!({ "chunk_size": part_bytes.to_string() });
                for number in 1..=size.div_ceil(part_bytes) {
                    header[format!("{number:05}")] =
                        json!(format!("{storage}/objects/{oid}/{number}"));
                }
                json!({ "href": format!("{hub}/complete/{oid}"), "header": header })
            }
        };
        json!({ "upload": upload, "verify": { "href": format!("{hub}/verify/{oid}") } })
    }

    pub fn complete(&mut self, request: &Request, oid: &str) -> Answer {
        let asked: Value = serde_json::from_slice(&request.body).expect("JSON");
        let parts = self.parts.remove(oid).unwrap_or_default();
        let expected: Vec<Value> = parts
            .keys()
            .map(|number| json!({ "partNumber": number, "etag": format!("\"part-{number}\"") }))
            .collect();
        assert_eq!(
            (&asked["oid"], &asked["parts"]),
            (&json!(oid), &json!(expected))
        );
        let joined = parts.into_values().flatten().collect();
        self.objects.insert(oid.to_owned(), joined);
        Answer::json(&json!({}))
    }

    pub fn verify(&mut self, request: &Request, oid: &str) -> Answer {
        if let Some(refused) = Self::may_write(request) {
            return refused;
        }
        let asked: Value = serde_json::from_slice(&request.body).expect("JSON");
        let Some(object) = self.objects.get(oid) else {
            return Answer::error(404, "", "no such object");
        };
        if sha256(object) != oid || asked != json!({ "oid": oid, "size": object.len() }) {
            return Answer::error(422, "", "not what was announced");
        }
        self.verified.insert(oid.to_owned());
        Answer::json(&json!({}))
    }

    pub fn commit(&mut self, request: &Request, name: &str) -> Answer {
        if let Some(refused) = Self::may_write(request) {
            return refused;
        }
        assert_eq!(request.headers["content-type"], "application/x-ndjson");
        let body = String::from_utf8(request.body.clone()).expect("UTF-8");
        let mut lines = body
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let header = lines.next().expect("a header");
        assert!(header["key"] == "header" && header["value"]["summary"].is_string());
        let there = self.repositories[name].commit_of("main");
        let mut files = there.map_or_else(Files::new, |commit| {
            self.repositories[name].commits[&commit].clone()
        });
        for line in lines {
            let value = &line["value"];
            let path = value["path"].as_str().expect("a path").to_owned();
            let bytes = match line["key"].as_str() {
                Some("file") => from_base64(value["content"].as_str().expect("content")),
                Some("lfsFile") => {
                    let oid = value["oid"].as_str().expect("an oid");
                    assert_eq!(value["algo"], "sha256");
                    let Some(object) = self.objects.get(oid).cloned() else {
                        return Answer::error(400, "", "an object that was not uploaded");
                    };
                    assert_eq!(value["size"], object.len());
                    object
                }
                other => panic!("key {other:?}"),
            };
            files.insert(path, bytes);
        }
        let oid = git_sha1(body.as_bytes());
        let repository = self.repositories.entry(name.to_owned()).or_default();
        repository.revisions.insert("main".into(), oid.clone());
        repository.commits.insert(oid.clone(), files);
        let url = format!("{}/{name}/commit/{oid}", self.hub);
        Answer::json(&json!({ "success": true, "commitOid": oid, "commitUrl": url }))
    }
}

/// Not by the library that made it.
fn from_base64(text: &str) -> Vec<u8> {
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut n_bits, mut bytes) = (0u32, 0, Vec::new());
    for c in text.chars().filter(|c| *c != '=') {
        bits = bits << 6 | alphabet.find(c).expect("of the alphabet") as u32;
        n_bits += 6;
        if n_bits >= 8 {
            n_bits -= 8;
            bytes.push((bits >> n_bits) as u8);
            bits &= (1 << n_bits) - 1;
        }
    }
    bytes
}
