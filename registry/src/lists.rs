//! Lists: tags, repositories, and the search that clients of the first protocol version know.

use serde_json::json;

use crate::api::Call;
use crate::http::{Head, escape};
use crate::response::Response;
use crate::server::Shared;

/// Lists the tags of a repository.
pub(crate) fn tags(call: &Call<'_>) -> Response {
    match call.shared.storage.tags(&call.name) {
        Err(error) => Response::internal(&error),
        Ok(None) => Response::error(404, "NAME_UNKNOWN", "repository name not known to registry"),
        Ok(Some(tags)) => {
            let name = call.name.as_str();
            page(call.head, tags, &format!("/v2/{name}/tags/list"), |tags| json!({"name": name, "tags": tags}))
        }
    }
}

/// Lists the repositories.
pub(crate) fn catalog(shared: &Shared, head: &Head) -> Response {
    match shared.storage.repositories() {
        Err(error) => Response::internal(&error),
        Ok(names) => page(head, names, "/v2/_catalog", |names| json!({"repositories": names})),
    }
}

/// Finds repositories by a part of their names.
pub(crate) fn search(shared: &Shared, head: &Head) -> Response {
    let wanted = head.parameter("q").unwrap_or("");
    match shared.storage.repositories() {
        Err(error) => Response::internal(&error),
        Ok(names) => {
            let limit = head.parameter("n").and_then(|count| count.parse().ok()).unwrap_or(25);
            let entry = |name: &String| json!({"name": name, "description": "", "star_count": 0, "is_official": false});
            let results: Vec<_> = names.iter().filter(|name| name.contains(wanted)).take(limit).map(entry).collect();
            Response::json(200, &json!({"query": wanted, "num_results": results.len(), "results": results}))
        }
    }
}

/// Cuts the page that is asked for out of a sorted list.
fn page(head: &Head, mut entries: Vec<String>, path: &str, body: impl Fn(&[String]) -> serde_json::Value) -> Response {
    if let Some(last) = head.parameter("last") {
        entries.retain(|entry| entry.as_str() > last);
    }
    let Some(count) = head.parameter("n") else { return Response::json(200, &body(&entries)) };
    let Ok(count) = count.parse::<usize>() else {
        return Response::error(400, "PAGINATION_NUMBER_INVALID", "n is not a number");
    };
    let more = entries.len() > count;
    entries.truncate(count);
    let response = Response::json(200, &body(&entries));
    match entries.last().filter(|_| more) {
        Some(last) => response.with("Link", format!("<{path}?last={}&n={count}>; rel=\"next\"", escape(last))),
        None => response,
    }
}
