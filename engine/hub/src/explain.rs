//! What to say when the hub does not give a model: what is wrong, and what to do about it.

#![forbid(unsafe_code)]

use serde_json::Value;

use crate::cache::RepositoryCache;
use crate::client::{Client, Failure, Refusal, Request};
use crate::download::escape_part;
use crate::error::{Error, ErrorKind};
use crate::id::ModelId;
use crate::repository::{list_of, model_names, near_names, or_else, Repository};

/// Models of one owner that are compared with a name: the most popular ones.
const MODELS_MAX: usize = 1000;

/// The error for a model that could not be had.
pub(crate) fn explain(client: &Client, id: &ModelId, failure: Failure) -> Error {
    match failure {
        Failure::Other(error) => error,
        Failure::Network(text) => not_downloaded(client, id, &text),
        Failure::Unreachable(text) => {
            not_downloaded(client, id, &format!("the hub cannot be reached: {text}"))
        }
        Failure::Refused(refusal) => refused(client, id, &refusal),
    }
}

fn not_downloaded(client: &Client, id: &ModelId, why: &str) -> Error {
    Error::new(
        ErrorKind::Network,
        format!(
            "{id}: no such file or folder here, and it cannot be downloaded: {why}; {}",
            not_in_cache(client, id)
        ),
    )
}

/// A model that is asked for while the network is forbidden by an environment variable.
pub(crate) fn offline(client: &Client, id: &ModelId, variable: &str) -> Error {
    Error::new(
        ErrorKind::Network,
        format!(
            "{id}: no such file or folder here, and {variable} is set, which forbids downloads; {}",
            not_in_cache(client, id)
        ),
    )
}

fn not_in_cache(client: &Client, id: &ModelId) -> String {
    let cache = client.settings.cache.display();
    if let Err(error) = RepositoryCache::new(&client.settings.cache, &id.repository()).check() {
        return format!("what {cache} has cannot be seen: {error}");
    }
    let repository = Repository::new(client, id);
    if repository.is_unknown() {
        return format!(
            "looked for {}, of which {cache} has nothing",
            id.repository()
        );
    }
    let known = match repository.commits().first() {
        Some(commit) => format!(", but it has commit {commit}, which @{commit} names"),
        None => String::new(),
    };
    let missing = repository.missing();
    let missing: Vec<&str> = missing.iter().map(String::as_str).collect();
    let missing = match missing[..] {
        [] => String::new(),
        _ => format!(": it lacks {}", list_of(&missing)),
    };
    format!(
        "{cache} does not have all of {}{missing}{known}",
        id.revision()
    )
}

fn refused(client: &Client, id: &ModelId, refusal: &Refusal) -> Error {
    let (repository, hub) = (id.repository(), &client.settings.endpoint);
    let token = client.settings.token.as_ref();
    let code = refusal.code.as_deref().unwrap_or("");
    let (kind, text) = match (refusal.status, code) {
        (_, "GatedRepo") => (
            ErrorKind::Access,
            format!(
                "{repository}: a gated model: accept its conditions on {hub}/{repository}, and {}",
                match token {
                    Some(token) => format!(
                        "make sure that the token in {} is of that account",
                        token.source
                    ),
                    None => "put a token of that account into HF_TOKEN".to_owned(),
                }
            ),
        ),
        (404, "RevisionNotFound") => {
            let revisions = revisions(client, &repository);
            let names: Vec<&str> = revisions.iter().map(String::as_str).collect();
            let known = match names.is_empty() {
                true => String::new(),
                false => format!("; it has {}", list_of(&names)),
            };
            let revision = id.revision();
            let text = format!("{repository}: no branch, tag or commit {revision}{known}");
            (ErrorKind::NotFound, text)
        }
        (404, "EntryNotFound") => (ErrorKind::NotFound, format!("{repository}: {refusal}")),
        (401, code) if code != "RepoNotFound" && token.is_some() => (
            ErrorKind::Access,
            format!(
                "{repository}: {hub} does not accept the token in {} (401); make another on \
             {hub}/settings/tokens, or unset it: public models need none",
                token.map_or("", |token| &token.source)
            ),
        ),
        // Who may not see a repository is told that it does not exist, and the other way round.
        (401 | 404, _) if refusal.url.starts_with(&format!("{hub}/api/")) => {
            (ErrorKind::NotFound, not_found(client, id, refusal))
        }
        (401 | 403, _) => (
            ErrorKind::Access,
            format!(
                "{repository}: {refusal}; {}",
                match token {
                    Some(token) => format!("the token in {} may not read it", token.source),
                    None => "it may need a token, in HF_TOKEN".to_owned(),
                }
            ),
        ),
        (429, _) => (
            ErrorKind::Hub,
            format!(
                "{repository}: {refusal}; wait a little{}",
                match token {
                    Some(_) => "",
                    None => ", or put a token into HF_TOKEN: with one the hub allows more",
                }
            ),
        ),
        _ => (ErrorKind::Hub, format!("{repository}: {refusal}")),
    };
    Error::new(kind, text)
}

fn not_found(client: &Client, id: &ModelId, refusal: &Refusal) -> String {
    let (repository, hub) = (id.repository(), &client.settings.endpoint);
    let query = format!("author={}&limit={MODELS_MAX}", escape_part(id.owner()));
    let mut names = model_names(client, &query);
    names.retain(|name| *name != repository);
    let mut near = near_names(&repository, names.iter().map(String::as_str));
    if near.is_empty() {
        // Perhaps another owner has it.
        let query = format!("search={}&limit=20", escape_part(id.name()));
        names = model_names(client, &query);
        names.retain(|name| *name != repository);
        near = names.iter().take(5).map(String::as_str).collect();
    }
    let private = match (refusal.status, &client.settings.token) {
        (401, None) => "; if it is private or gated, put a token into HF_TOKEN".to_owned(),
        (_, None) => String::new(),
        (_, Some(token)) => format!(
            "; if it is private, the token in {} may not see it",
            token.source
        ),
    };
    format!(
        "{id}: no such file or folder here, and no such model on {hub} ({}){}{private}",
        refusal.status,
        or_else(&near)
    )
}

/// Branches and tags.
fn revisions(client: &Client, repository: &str) -> Vec<String> {
    let url = format!("{}/api/models/{repository}/refs", client.settings.endpoint);
    let Ok(refs) = client.json(&Request::get(url), 1) else {
        return Vec::new();
    };
    let name = |found: &Value| Some(found.get("name")?.as_str()?.to_owned());
    let of = |kind: &str| {
        refs.get(kind)
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
    };
    let both = [of("branches"), of("tags")].concat();
    both.iter().filter_map(name).collect()
}
