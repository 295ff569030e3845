//! Layers that are not whole: read and completed by a fetcher of the same process, so that its calls fail as well.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::time::Duration;

use strata_imagestore::{Fetcher, ImageId, LazyLayer, Store};
use strata_layer::index::{Index, NodeId};

use super::{Scene, told};

/// Whether the fetcher takes part in an operation.
pub(super) fn is_slow(operation: &str) -> bool {
    matches!(operation, "lazy-stargz" | "lazy-chunked")
}

/// Reads every file of an image and fetches until it is whole. A read may fail, but never gives other bytes.
pub(super) fn complete(store: &Store, scene: &Scene, name: &str) -> Result<(), String> {
    let name = format!("{}/{name}", scene.registry);
    let image = store.resolve(&name).map_err(|error| told(&error))?;
    let fetcher = Fetcher::new(Store::open(store.root()).map_err(|error| told(&error))?, scene.client());
    let fetching = std::thread::spawn(move || fetcher.with_linger(LINGER).run());
    let read = read_all(store, scene, &image);
    let fetched = fetching.join().expect("the fetcher does not panic");
    fetched.map_err(|error| told(&error))?;
    read?;
    // Whoever uses an image next puts the indexes in place that waited for the end of our use.
    for image in store.images().map_err(|error| told(&error))? {
        store.stack(&image.id).map(drop).map_err(|error| told(&error))?;
    }
    let layers = store.image(&image).map_err(|error| told(&error))?.layers;
    match store.lazy_progress(&layers).map_err(|error| told(&error))? {
        None => Ok(()),
        Some(progress) => Err(format!("{progress:?}")),
    }
}

fn read_all(store: &Store, scene: &Scene, image: &ImageId) -> Result<(), String> {
    let stack = store.stack(image).map_err(|error| told(&error))?;
    let layer = stack.layers[0].diff_id;
    // The other thread of this process fetches.
    let source = LazyLayer::open(store.root(), layer, |_| Ok(())).map_err(|error| told(&error))?;
    let Some(source) = source else { return Ok(()) };
    let source = source.with_deadline(scene.patience);
    let index = File::open(&stack.index).map_err(|error| told(&error))?;
    let index = Index::open(&index).map_err(|error| told(&error))?;
    for (path, expected) in expected_files(scene).map_err(|error| told(&error))? {
        let node = path.split('/').try_fold(NodeId::ROOT, |node, name| index.lookup(node, name.as_bytes()));
        let node = node.unwrap_or_else(|| panic!("{path} is not in the index"));
        let mut found = Vec::new();
        for extent in index.extents(node) {
            let mut piece = vec![0; usize::try_from(extent.length).unwrap()];
            source.read_exact_at(&mut piece, extent.source).map_err(|error| told(&error))?;
            found.extend(piece);
        }
        assert!(found == expected, "{path} has other bytes");
    }
    Ok(())
}

/// The files of the layer and what is in them.
fn expected_files(scene: &Scene) -> std::io::Result<BTreeMap<String, Vec<u8>>> {
    let bytes = fs::read(scene.folder.join("lazy.tar"))?;
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(&bytes[..]).entries()? {
        let mut entry = entry?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        if entry.header().entry_type().is_file() && !path.contains(".wh.") {
            files.insert(path, content);
        }
    }
    Ok(files)
}

/// How long the fetcher waits for more to do: longer than it takes to look for it.
const LINGER: Duration = Duration::from_millis(250);
