//! Content types by the end of a name: what Python's `mimetypes.guess_type` says, with which Swift fills in the
//! Content-Type of a PUT that has none.
//!
//! The built-in table is that of Python 3; `mime.types` files of the system and of `swift_dir` override it.

use std::collections::HashMap;
use std::path::Path;

/// Where systems keep `mime.types`; a later file overrides an earlier one.
const KNOWN_FILES: [&str; 9] = [
    "/etc/mime.types",
    "/etc/httpd/mime.types",
    "/etc/httpd/conf/mime.types",
    "/etc/apache/mime.types",
    "/etc/apache2/mime.types",
    "/usr/local/etc/httpd/conf/mime.types",
    "/usr/local/lib/netscape/mime.types",
    "/usr/local/etc/httpd/conf/mime.types",
    "/usr/local/etc/mime.types",
];

/// Names ending so are taken for the longer form.
const SUFFIXES: [(&str, &str); 6] = [
    (".svgz", ".svg.gz"),
    (".taz", ".tar.gz"),
    (".tbz2", ".tar.bz2"),
    (".tgz", ".tar.gz"),
    (".txz", ".tar.xz"),
    (".tz", ".tar.gz"),
];

/// Not types, but encodings of what is before them.
const ENCODINGS: [&str; 5] = [".Z", ".br", ".bz2", ".gz", ".xz"];

const TYPES: [(&str, &str); 149] = [
    (".3g2", "audio/3gpp2"),
    (".3gp", "audio/3gpp"),
    (".3gpp", "audio/3gpp"),
    (".3gpp2", "audio/3gpp2"),
    (".a", "application/octet-stream"),
    (".aac", "audio/aac"),
    (".adts", "audio/aac"),
    (".ai", "application/postscript"),
    (".aif", "audio/x-aiff"),
    (".aifc", "audio/x-aiff"),
    (".aiff", "audio/x-aiff"),
    (".ass", "audio/aac"),
    (".au", "audio/basic"),
    (".avi", "video/x-msvideo"),
    (".avif", "image/avif"),
    (".bat", "text/plain"),
    (".bcpio", "application/x-bcpio"),
    (".bin", "application/octet-stream"),
    (".bmp", "image/bmp"),
    (".c", "text/plain"),
    (".cdf", "application/x-netcdf"),
    (".cpio", "application/x-cpio"),
    (".csh", "application/x-csh"),
    (".css", "text/css"),
    (".csv", "text/csv"),
    (".dll", "application/octet-stream"),
    (".doc", "application/msword"),
    (".dot", "application/msword"),
    (".dvi", "application/x-dvi"),
    (".eml", "message/rfc822"),
    (".eps", "application/postscript"),
    (".etx", "text/x-setext"),
    (".exe", "application/octet-stream"),
    (".gif", "image/gif"),
    (".gtar", "application/x-gtar"),
    (".h", "text/plain"),
    (".h5", "application/x-hdf5"),
    (".hdf", "application/x-hdf"),
    (".heic", "image/heic"),
    (".heif", "image/heif"),
    (".htm", "text/html"),
    (".html", "text/html"),
    (".ico", "image/vnd.microsoft.icon"),
    (".ief", "image/ief"),
    (".jpe", "image/jpeg"),
    (".jpeg", "image/jpeg"),
    (".jpg", "image/jpeg"),
    (".js", "application/javascript"),
    (".json", "application/json"),
    (".ksh", "text/plain"),
    (".latex", "application/x-latex"),
    (".loas", "audio/aac"),
    (".m1v", "video/mpeg"),
    (".m3u", "application/vnd.apple.mpegurl"),
    (".m3u8", "application/vnd.apple.mpegurl"),
    (".man", "application/x-troff-man"),
    (".me", "application/x-troff-me"),
    (".mht", "message/rfc822"),
    (".mhtml", "message/rfc822"),
    (".mif", "application/x-mif"),
    (".mjs", "application/javascript"),
    (".mov", "video/quicktime"),
    (".movie", "video/x-sgi-movie"),
    (".mp2", "audio/mpeg"),
    (".mp3", "audio/mpeg"),
    (".mp4", "video/mp4"),
    (".mpa", "video/mpeg"),
    (".mpe", "video/mpeg"),
    (".mpeg", "video/mpeg"),
    (".mpg", "video/mpeg"),
    (".ms", "application/x-troff-ms"),
    (".n3", "text/n3"),
    (".nc", "application/x-netcdf"),
    (".nq", "application/n-quads"),
    (".nt", "application/n-triples"),
    (".nws", "message/rfc822"),
    (".o", "application/octet-stream"),
    (".obj", "application/octet-stream"),
    (".oda", "application/oda"),
    (".opus", "audio/opus"),
    (".p12", "application/x-pkcs12"),
    (".p7c", "application/pkcs7-mime"),
    (".pbm", "image/x-portable-bitmap"),
    (".pdf", "application/pdf"),
    (".pfx", "application/x-pkcs12"),
    (".pgm", "image/x-portable-graymap"),
    (".pl", "text/plain"),
    (".png", "image/png"),
    (".pnm", "image/x-portable-anymap"),
    (".pot", "application/vnd.ms-powerpoint"),
    (".ppa", "application/vnd.ms-powerpoint"),
    (".ppm", "image/x-portable-pixmap"),
    (".pps", "application/vnd.ms-powerpoint"),
    (".ppt", "application/vnd.ms-powerpoint"),
    (".ps", "application/postscript"),
    (".pwz", "application/vnd.ms-powerpoint"),
    (".py", "text/x-python"),
    (".pyc", "application/x-python-code"),
    (".pyo", "application/x-python-code"),
    (".qt", "video/quicktime"),
    (".ra", "audio/x-pn-realaudio"),
    (".ram", "application/x-pn-realaudio"),
    (".ras", "image/x-cmu-raster"),
    (".rdf", "application/xml"),
    (".rgb", "image/x-rgb"),
    (".roff", "application/x-troff"),
    (".rtx", "text/richtext"),
    (".sgm", "text/x-sgml"),
    (".sgml", "text/x-sgml"),
    (".sh", "application/x-sh"),
    (".shar", "application/x-shar"),
    (".snd", "audio/basic"),
    (".so", "application/octet-stream"),
    (".src", "application/x-wais-source"),
    (".srt", "text/plain"),
    (".sv4cpio", "application/x-sv4cpio"),
    (".sv4crc", "application/x-sv4crc"),
    (".svg", "image/svg+xml"),
    (".swf", "application/x-shockwave-flash"),
    (".t", "application/x-troff"),
    (".tar", "application/x-tar"),
    (".tcl", "application/x-tcl"),
    (".tex", "application/x-tex"),
    (".texi", "application/x-texinfo"),
    (".texinfo", "application/x-texinfo"),
    (".tif", "image/tiff"),
    (".tiff", "image/tiff"),
    (".tr", "application/x-troff"),
    (".trig", "application/trig"),
    (".tsv", "text/tab-separated-values"),
    (".txt", "text/plain"),
    (".ustar", "application/x-ustar"),
    (".vcf", "text/x-vcard"),
    (".vtt", "text/vtt"),
    (".wasm", "application/wasm"),
    (".wav", "audio/x-wav"),
    (".webm", "video/webm"),
    (".webmanifest", "application/manifest+json"),
    (".wiz", "application/msword"),
    (".wsdl", "application/xml"),
    (".xbm", "image/x-xbitmap"),
    (".xlb", "application/vnd.ms-excel"),
    (".xls", "application/vnd.ms-excel"),
    (".xml", "text/xml"),
    (".xpdl", "application/xml"),
    (".xpm", "image/x-xpixmap"),
    (".xsl", "application/xml"),
    (".xwd", "image/x-xwindowdump"),
    (".zip", "application/zip"),
];

pub struct MimeTypes {
    types: HashMap<String, String>,
}

impl MimeTypes {
    /// The built-in table alone.
    pub fn builtin() -> Self {
        Self { types: TYPES.iter().map(|(ext, mime)| ((*ext).to_owned(), (*mime).to_owned())).collect() }
    }

    /// With the system's files and `swift_dir/mime.types`, those of them that exist.
    pub fn load(swift_dir: &Path) -> Self {
        let mut types = Self::builtin();
        let known = KNOWN_FILES.iter().map(|file| Path::new(file).to_owned());
        for file in known.chain([swift_dir.join("mime.types")]) {
            if let Ok(text) = std::fs::read(file) {
                types.read(&String::from_utf8_lossy(&text));
            }
        }
        types
    }

    /// Lines of a type and the extensions it has; `#` begins a comment.
    fn read(&mut self, text: &str) {
        for line in text.lines() {
            let mut words = line.split_whitespace().take_while(|word| !word.starts_with('#'));
            let Some(mime) = words.next() else { continue };
            for ext in words {
                self.types.insert(format!(".{ext}"), mime.to_owned());
            }
        }
    }

    pub fn guess_type(&self, path: &str) -> Option<&str> {
        let (base, mut ext) = split_ext(path);
        let mut base = base.to_owned();
        let mut owned: String;
        while let Some((_, longer)) = SUFFIXES.iter().find(|(short, _)| ext.eq_ignore_ascii_case(short)) {
            owned = format!("{base}{longer}");
            let (shorter, last) = split_ext(&owned);
            base = shorter.to_owned();
            ext = &longer[longer.len() - last.len()..];
        }
        if ENCODINGS.contains(&ext) {
            ext = split_ext(&base).1;
        }
        let found = self.types.get(ext).or_else(|| self.types.get(&ext.to_lowercase()))?;
        Some(found)
    }
}

/// Python's `posixpath.splitext`: dots that a name begins with do not count.
fn split_ext(path: &str) -> (&str, &str) {
    let name = path.rfind('/').map_or(0, |slash| slash + 1);
    let begins = path[name..].len() - path[name..].trim_start_matches('.').len();
    match path[name + begins..].rfind('.') {
        Some(dot) => path.split_at(name + begins + dot),
        None => (path, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answers of `mimetypes.MimeTypes().guess_type(name)` in Python.
    #[test]
    fn guesses_are_pythons() {
        let types = MimeTypes::builtin();
        let cases: [(&str, Option<&str>); 17] = [
            ("/v1/a/c/x.txt", Some("text/plain")),
            ("/v1/a/c/x.TXT", Some("text/plain")),
            ("/v1/a/c/x.tar.gz", Some("application/x-tar")),
            ("/v1/a/c/x.tgz", Some("application/x-tar")),
            ("/v1/a/c/x.svgz", Some("image/svg+xml")),
            ("/v1/a/c/.txt", None),
            ("/v1/a/c/x", None),
            ("/v1/a/c/x.tar.Z", Some("application/x-tar")),
            ("/v1/a/c/x.gz", None),
            ("/v1/a/c/d.html/x", None),
            ("/v1/a/c/..js", None),
            ("/v1/a/c/x.json", Some("application/json")),
            ("/v1/a/c/é.jpeg", Some("image/jpeg")),
            ("/v1/a/c/x.tbz2", Some("application/x-tar")),
            ("/v1/a/c/x.unknown", None),
            ("/v1/a/c/x.css.br", Some("text/css")),
            ("/v1/a/c/x.Z", None),
        ];
        for (name, want) in cases {
            assert_eq!(types.guess_type(name), want, "{name}");
        }
    }

    #[test]
    fn a_mime_types_file_overrides() {
        let mut types = MimeTypes::builtin();
        types.read("# comment\ntext/x-mine txt foo # not bar\n\ntext/none\n");
        assert_eq!(types.guess_type("/a.txt"), Some("text/x-mine"));
        assert_eq!(types.guess_type("/a.foo"), Some("text/x-mine"));
        assert_eq!(types.guess_type("/a.bar"), None);
    }
}
