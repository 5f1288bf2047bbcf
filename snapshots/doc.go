// Package snapshots is the past of a store as moments: how a moment is named and found (ParseMoment, Moment.Resolve), and Tree, the
// read-only directory `.snapshots` in which any moment, the versions of a path and what was deleted are looked at with ordinary programs.
//
// A moment is a journal record: the state of the store after it. Resolving one costs an index lookup, whatever the store holds,
// and the state at a record never changes, so it may be cached without limit. What is resolved anew at each lookup is only which record
// a text such as "@10m" means.
package snapshots
