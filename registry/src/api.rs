//! Which request goes where.

use std::io::Read;

use crate::access::Action;
use crate::fault::Misbehaviour;
use crate::http::{Body, Head, parse_form};
use crate::name::Repository;
use crate::response::Response;
use crate::server::Shared;
use crate::{blobs, lists, manifests, uploads};

/// A request for a repository, allowed.
pub(crate) struct Call<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) head: &'a Head,
    pub(crate) name: Repository,
    pub(crate) faults: &'a [Misbehaviour],
}

/// What of a repository is asked for.
enum Resource<'a> {
    Tags,
    Blob(&'a str),
    Upload(Option<&'a str>),
    Manifest(&'a str),
    Referrers(&'a str),
}

/// Answers a request.
pub(crate) fn answer(shared: &Shared, head: &Head, body: &mut Body<'_>, faults: &[Misbehaviour]) -> Response {
    for fault in faults {
        match fault {
            Misbehaviour::Status { code, retry_after } => {
                let response = Response::error(*code, "UNAVAILABLE", "as demanded");
                return match retry_after {
                    Some(seconds) => response.with("Retry-After", seconds.to_string()),
                    None => response,
                };
            }
            Misbehaviour::Redirect(address) => {
                return Response::new(307).with("Location", format!("{address}{}", head.path));
            }
            Misbehaviour::RedirectLoop => {
                return Response::new(307).with("Location", format!("{}?again=1", head.path));
            }
            _ => {}
        }
    }
    let mut response = route(shared, head, body, faults);
    if let Some(Misbehaviour::Answer(status)) = faults.iter().find(|fault| matches!(fault, Misbehaviour::Answer(_)))
        && (200..300).contains(&response.status)
    {
        response.status = *status;
    }
    response.with("Docker-Distribution-API-Version", "registry/2.0")
}

fn route(shared: &Shared, head: &Head, body: &mut Body<'_>, faults: &[Misbehaviour]) -> Response {
    let origin = shared.origin(head);
    let check = |repository: &str, action: Action| shared.access.check(head, &origin, repository, action);
    match head.path.as_str() {
        "/v2" | "/v2/" => {
            return match check("", Action::Base) {
                Err(refusal) => refusal,
                Ok(()) => Response::json(200, &serde_json::json!({})),
            };
        }
        "/v2/_catalog" => {
            return match check("", Action::Catalog) {
                Err(refusal) => refusal,
                Ok(()) => lists::catalog(shared, head),
            };
        }
        "/v1/search" => {
            return match check("", Action::Catalog) {
                Err(refusal) => refusal,
                Ok(()) => lists::search(shared, head),
            };
        }
        "/token" => {
            let mut form = head.query.clone();
            let mut text = String::new();
            if body.take(MAX_FORM).read_to_string(&mut text).is_ok() {
                form.extend(parse_form(&text));
            }
            return shared.access.issue(head, &form);
        }
        _ => {}
    }
    let Some((name, resource)) = head.path.strip_prefix("/v2/").and_then(split) else {
        return Response::error(404, "UNSUPPORTED", "there is nothing here");
    };
    let action = match head.method.as_str() {
        "GET" | "HEAD" if !matches!(resource, Resource::Upload(_)) => Action::Pull,
        "DELETE" if !matches!(resource, Resource::Upload(_)) => Action::Delete,
        _ => Action::Push,
    };
    if let Err(refusal) = check(name, action) {
        return refusal;
    }
    let Some(name) = Repository::parse(name) else {
        return Response::error(400, "NAME_INVALID", "invalid repository name");
    };
    if shared.read_only && action != Action::Pull {
        return Response::error(405, "UNSUPPORTED", "the registry is read-only");
    }
    let call = Call { shared, head, name, faults };
    match (head.method.as_str(), resource) {
        ("GET", Resource::Tags) => lists::tags(&call),
        ("GET" | "HEAD", Resource::Blob(digest)) => blobs::get(&call, digest),
        ("DELETE", Resource::Blob(digest)) => blobs::delete(&call, digest),
        ("POST", Resource::Upload(None)) => uploads::start(&call, body),
        ("GET", Resource::Upload(Some(id))) => uploads::status(&call, id),
        ("PATCH", Resource::Upload(Some(id))) => uploads::append(&call, id, body),
        ("PUT", Resource::Upload(Some(id))) => uploads::finish(&call, id, body),
        ("DELETE", Resource::Upload(Some(id))) => uploads::cancel(&call, id),
        ("GET" | "HEAD", Resource::Manifest(reference)) => manifests::get(&call, reference),
        ("PUT", Resource::Manifest(reference)) => manifests::put(&call, reference, body),
        ("DELETE", Resource::Manifest(reference)) => manifests::delete(&call, reference),
        ("GET", Resource::Referrers(digest)) => manifests::referrers(&call, digest),
        _ => Response::error(405, "UNSUPPORTED", "this method has no meaning here"),
    }
}

/// Splits a path behind `/v2/` at its last fixed words, as repositories may have parts that read like them.
fn split(path: &str) -> Option<(&str, Resource<'_>)> {
    if let Some(name) = path.strip_suffix("/tags/list") {
        return Some((name, Resource::Tags));
    }
    if let Some(name) = path.strip_suffix("/blobs/uploads").or_else(|| path.strip_suffix("/blobs/uploads/")) {
        return Some((name, Resource::Upload(None)));
    }
    let (rest, last) = path.rsplit_once('/')?;
    if let Some(name) = rest.strip_suffix("/blobs/uploads") {
        return Some((name, Resource::Upload(Some(last))));
    }
    let (name, kind) = rest.rsplit_once('/')?;
    match kind {
        "blobs" => Some((name, Resource::Blob(last))),
        "manifests" => Some((name, Resource::Manifest(last))),
        "referrers" => Some((name, Resource::Referrers(last))),
        _ => None,
    }
}

const MAX_FORM: u64 = 64 << 10;
