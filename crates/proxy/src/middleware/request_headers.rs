//! Backend headers by which filters tell the object server what they will make of its answer.

use common::headers::{X_BACKEND_ETAG_IS_AT, X_BACKEND_IGNORE_RANGE_IF_METADATA_PRESENT};
use service::http::{Headers, conditional};

/// The ETag for conditional requests is in the header `name`, if the object has it; what a filter further left said
/// goes first.
pub fn etag_is_at(headers: &mut Headers, name: &str) {
    append(headers, X_BACKEND_ETAG_IS_AT, name);
}

/// If the object has the metadata `name`, all of it is wanted whatever Range says.
pub fn ignore_range_if(headers: &mut Headers, name: &str) {
    append(headers, X_BACKEND_IGNORE_RANGE_IF_METADATA_PRESENT, name);
}

fn append(headers: &mut Headers, header: &str, name: &str) {
    match headers.get(header) {
        Some(existing) if !existing.is_empty() => {
            let joined = [existing, b",", name.as_bytes()].concat();
            headers.insert(header, joined);
        }
        _ => headers.insert(header, name),
    }
}

/// The ETag that the client's conditions are about, by the first name in `X-Backend-Etag-Is-At` that the response has.
pub fn resolve_etag_is_at(request: &Headers, response: &Headers) -> Option<String> {
    conditional::resolve_etag_is_at(request, |name| response.get_str(name)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftmost_name_that_is_present_wins() {
        let mut request = Headers::new();
        etag_is_at(&mut request, "X-Object-Sysmeta-A");
        etag_is_at(&mut request, "X-Object-Sysmeta-B");
        assert_eq!(request.get_str(X_BACKEND_ETAG_IS_AT), Some("X-Object-Sysmeta-A,X-Object-Sysmeta-B"));
        let mut response = Headers::new();
        assert_eq!(resolve_etag_is_at(&request, &response), None);
        response.insert("X-Object-Sysmeta-B", "b");
        assert_eq!(resolve_etag_is_at(&request, &response).as_deref(), Some("b"));
        response.insert("X-Object-Sysmeta-A", "a");
        assert_eq!(resolve_etag_is_at(&request, &response).as_deref(), Some("a"));
    }
}
