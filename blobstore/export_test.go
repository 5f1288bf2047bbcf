package blobstore

// WaitCompressed returns when the worker has nothing left to do.
func WaitCompressed(s Store) { s.(*store).large.(*files).worker.wait() }

// SidecarLine is the line that a sidecar is stored as.
func SidecarLine(sc Sidecar) ([]byte, error) { return sc.marshal() }

// RowSum is what column sum of a row with these columns should hold.
func RowSum(h Hash, size, stored, zstd, level, version, time, backups, lastBackup int64) int64 {
	k := columns{0, size, stored, zstd, level, version, time, backups, lastBackup, 0}
	return k.sum(h)
}
