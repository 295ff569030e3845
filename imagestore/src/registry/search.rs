//! Finding repositories: the search of Docker Hub's first protocol, and the catalog of registries that have only that.

use serde_json::Value;

use super::client::{RegistryClient, Remote};
use super::error::RegistryError;
use super::settings::DOCKER_HUB;
use super::tls::Proof;
use super::url::Url;
use crate::progress::Progress;

/// A repository that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundRepository {
    /// Its name.
    pub name: String,
    /// What its owner says about it.
    pub description: String,
    /// How many people marked it.
    pub stars: u64,
    /// Whether it is one of Docker's own.
    pub official: bool,
}

impl RegistryClient {
    /// Finds repositories of a registry by a part of their names; at most `limit` of them.
    pub fn search(
        &self,
        registry: &str,
        term: &str,
        limit: usize,
        progress: &dyn Progress,
    ) -> Result<Vec<FoundRepository>, RegistryError> {
        let mut endpoints = self.endpoints(registry, false);
        if registry == DOCKER_HUB {
            for endpoint in &mut endpoints {
                (endpoint.origin.host, endpoint.proof) = (HUB_SEARCH.to_owned(), Proof::Required);
            }
        }
        self.first_of(&endpoints, |endpoint| {
            let remote = Remote { client: self, endpoint: endpoint.clone(), scopes: Vec::new(), login: None };
            let url = Url::new(endpoint.origin.clone(), "/v1/search");
            let url = url.with_parameter("q", term).with_parameter("n", &limit.to_string());
            let found = self.patiently(progress, term, || remote.call(&url, "GET", &[], None));
            match found {
                Ok(response) => {
                    let malformed = RegistryError::Malformed { url: url.shown(), reason: "it is not JSON" };
                    let bytes = response.read_all(MAX_ANSWER)?;
                    let document: Value = serde_json::from_slice(&bytes).map_err(|_| malformed)?;
                    let results = document.get("results").and_then(Value::as_array);
                    Ok(results.into_iter().flatten().take(limit).map(parse).collect())
                }
                // It has no search, so what it has is looked through here.
                Err(error) if registry != DOCKER_HUB && error.status().is_some_and(|status| status != 401) => {
                    let scopes = vec!["registry:catalog:*".to_owned()];
                    let remote = Remote { scopes, ..remote };
                    let names = self.patiently(progress, term, || {
                        remote.pages(&Url::new(endpoint.origin.clone(), "/v2/_catalog?n=1000"), "repositories")
                    })?;
                    let fits = names.into_iter().filter(|name| name.contains(term)).take(limit);
                    Ok(fits.map(|name| FoundRepository { name, ..FoundRepository::default() }).collect())
                }
                Err(error) => Err(error),
            }
        })
    }
}

fn parse(entry: &Value) -> FoundRepository {
    let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
    FoundRepository {
        name: text("name"),
        description: text("description"),
        stars: entry.get("star_count").and_then(Value::as_u64).unwrap_or(0),
        official: entry.get("is_official").and_then(Value::as_bool).unwrap_or(false),
    }
}

const HUB_SEARCH: &str = "index.docker.io";
const MAX_ANSWER: u64 = 4 << 20;
