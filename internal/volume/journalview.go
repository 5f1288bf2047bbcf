package volume

import "holdfast/catalog"

// JournalView is catalog.JournalView.
func (v *Volume) JournalView() catalog.JournalView { return v.cat.JournalView() }
