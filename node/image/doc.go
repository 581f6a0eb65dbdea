// Package image keeps the images of one host: their blobs, names and unpacked layers.
//
// On disk, below Config.Root:
//
//	blobs/sha256/<hex>       verified blobs, compressed as they came; never changed, only linked in and removed
//	ingest/<hex>             what is there of a blob that is arriving; kept over restarts, so a transfer resumes
//	ingest/<hex>.prefix      how many leading bytes of it to trust, if there are others behind a gap
//	ingest/tmp-*             bytes whose digest is not known yet; removed by Open
//	records/images/<hex>     one image, named by its ID (the digest of its config)
//	records/names/<hex>      one name, named by the digest of its text; points at a manifest
//	records/kept/<hex>       a name of what is more than an image here (an index with all platforms) or none
//	records/*/*.corrupt      records that did not verify, set aside by Open
//	layers/<chain>/fs        a layer as overlayfs wants it, named by its chain ID
//	layers/<chain>/image     the layer as an EROFS image, which is mounted at fs while containers use it;
//	                         of one whose blob is a plain tar only the tree: contents stay in the blob
//	layers/<chain>/layer     its record: diff ID, size, whiteouts
//	layers/<chain>/synced    is there once fs is known to be on the disk
//	layers/init/fs           the lowest layer of every container: mount points that images may lack
//	containers/<id>/         upper, work and merged of one container, and its record "snapshot"
//	staging/                 layers and containers that are being made; emptied by Open
//	quarantine/<hex>         blobs that Verify found damaged; see Verify
//	trash/                   trees that are being removed; emptied by Run
//
// Blobs and records are the truth and are synced before they count. Layers are a cache
// of blobs: one that is missing is unpacked again, and one that was not synced before
// the machine went down is dropped (a killed process loses nothing). A blob that a layer
// refers to for contents stays as long as the layer.
// Records are a JSON file each, with a checksum, replaced by rename: one that is
// damaged costs one image or one name, and can be read with any pager. (Writing one
// was measured at 0.7 ms, a transaction of bbolt at 0.4 ms: nothing beside a load.)
//
// Locks, in the order in which they are taken: Store.notify, Store.mu, mounts.mu,
// partial.io, partial.mu, ingests.mu, room.mu. None is held while a layer is unpacked or a blob fetched.
package image
