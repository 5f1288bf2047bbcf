package blobstore

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

func (s *files) protect(ctx context.Context, ref Ref) (bool, error) {
	done, err := turn(ctx, s.turns)
	if err != nil {
		return false, err
	}
	defer done()
	return s.makeParity(ctx, ref, false)
}

// makeParity is protect in its turn. With force a parity that looks right is replaced as well.
func (s *files) makeParity(ctx context.Context, ref Ref, force bool) (made bool, err error) {
	for attempt := 0; ; attempt++ {
		made, again, err := s.makeParityOnce(ctx, ref, force)
		if !again || attempt == 3 {
			return made, err
		}
	}
}

// makeParityOnce may find that the content was stored anew meanwhile: again.
func (s *files) makeParityOnce(ctx context.Context, ref Ref, force bool) (made, again bool, err error) {
	h := ref.Hash
	l, err := s.locate(h, blockCount(ref.Size))
	if err != nil {
		return false, false, err
	}
	defer l.release()
	if l.f == nil {
		return false, false, l.why
	}
	pr, pf, parErr := s.openParity(ctx, h)
	if parErr == nil {
		pf.release()
		if !force && !pr.partial && pr.fits(ref, l.enc, l.f.size) {
			return false, false, nil
		}
	} else if !unreadable(parErr) {
		return false, false, parErr
	}
	if l.f.size == 0 {
		return false, false, &DamageError{h, "size", "it is empty"}
	}
	var expect []byte
	if l.scErr == nil && l.enc == l.sc.Encoding && ref.Root != (Root{}) && newLayout(&l.sc).vouched(ref) {
		expect = l.sc.Blocks
	}
	digests := newStripeDigests(planFor(l.f.size))
	sum, frames, err := s.scan(ctx, ref, sized{tee{l.f, digests}, l.f.size}, l.enc, expect)
	if err == nil && expect == nil && ref.Root != (Root{}) && sum.Ref.Root != ref.Root {
		err = &DamageError{h, "root", "the content has its hash, but its blocks do not have the root that the blob should have"}
	}
	if err != nil {
		return false, !sameContent(s, h, &l), err
	}
	t, err := s.newTmp()
	if err != nil {
		return false, false, err
	}
	defer t.drop()
	info := parityInfo{ref: ref, enc: l.enc, stored: l.f.size}
	if ref.Root == (Root{}) {
		info.ref.Root = sum.Ref.Root
	}
	if err := buildParity(ctx, info, frames, l.f, digests, t); err != nil {
		return false, false, err
	}
	if err := t.sync(); err != nil {
		return false, false, err
	}
	st := &s.stripes[h[0]]
	st.mu.Lock()
	defer st.mu.Unlock()
	dir, err := s.dirForChange(h[0])
	if err != nil {
		return false, false, err
	}
	if !sameFile(l.f.fd, dir, fileName(h, l.enc)) {
		return false, true, notFound(h)
	}
	if err := t.commit(dir, h, h.String()+extParity); err != nil {
		return false, false, err
	}
	parityMade(ctx, h, pr, parErr)
	return true, false, s.syncDir(dir, h[0])
}

// sameContent reports whether the file of l still has its name.
func sameContent(s *files, h Hash, l *located) bool {
	dir, err := s.dir(h[0])
	return err == nil && sameFile(l.f.fd, dir, fileName(h, l.enc))
}

func (s *files) mend(ctx context.Context, ref Ref) (done Repaired, err error) {
	end, err := turn(ctx, s.turns)
	if err != nil {
		return done, err
	}
	defer end()
	if done.Bytes, done.Content, done.Sidecar, err = s.mendContent(ctx, ref); err != nil {
		return Repaired{}, err
	}
	if ref.Size <= MaxSmall {
		return done, nil
	}
	l, err := s.locate(ref.Hash, blockCount(ref.Size))
	if err != nil || l.f == nil {
		return done, err
	}
	expect := l.f.size
	l.release()
	pr, pf, parErr := s.openParity(ctx, ref.Hash)
	if parErr == nil {
		defer pf.release()
	} else if !unreadable(parErr) {
		return done, parErr
	}
	found, err := inspectParity(ctx, pr, parErr, ref, l.enc, expect)
	if err == nil && len(found) > 0 {
		done.Parity, err = s.makeParity(ctx, ref, true)
	}
	return done, err
}

// mendContent makes sure of the content and then of the sidecar.
func (s *files) mendContent(ctx context.Context, ref Ref) (computed int64, content, sidecar bool, err error) {
	for attempt := 0; ; attempt++ {
		current := s.current(ref.Hash)
		l, err := s.locate(ref.Hash, blockCount(ref.Size))
		if err != nil {
			return 0, false, false, err
		}
		order := encodings()
		if l.enc == encZstd {
			slices.Reverse(order[:])
		}
		l.release()
		why := notFound(ref.Hash)
		for _, enc := range order {
			sum, frames, err := s.verifyAs(ctx, ref, enc)
			if err == nil {
				if sidecar, err = s.mendSidecar(ref, enc, sum, frames, current); err != nil && errors.Is(err, errChanged) && attempt < 3 {
					why = err
					break
				}
				return 0, false, sidecar, err
			}
			if !unreadable(err) {
				return 0, false, false, err
			}
			if errors.Is(why, ErrNotFound) {
				why = err
			}
		}
		if !errors.Is(why, errChanged) {
			computed, sidecar, err = s.fromParity(ctx, ref, why, current)
			if err == nil {
				return computed, true, sidecar, nil
			}
			if !errors.Is(err, errChanged) || attempt == 3 {
				return 0, false, false, err
			}
		}
	}
}

// errChanged: somebody else has changed the blob meanwhile.
var errChanged = errors.New("the blob was changed meanwhile")

// mendSidecar makes the sidecar that of the intact content, and removes content in the other encoding.
func (s *files) mendSidecar(ref Ref, enc string, sum Summed, frames []uint32, current func() bool) (bool, error) {
	h := ref.Hash
	st := &s.stripes[h[0]]
	st.mu.Lock()
	defer st.mu.Unlock()
	if !current() {
		return false, errChanged
	}
	sc, loadErr := s.loadSidecar(h, blockCount(ref.Size))
	if loadErr != nil && !unreadable(loadErr) {
		return false, loadErr
	}
	if loadErr == nil && describes(&sc, sum, enc, frames) {
		return false, nil
	}
	dir, err := s.dirForChange(h[0])
	if err != nil {
		return false, err
	}
	s.forget(h, true)
	if err := s.writeSidecar(dir, h, s.sidecarOf(dir, &sc, loadErr, sum, enc, frames), true); err != nil {
		return false, err
	}
	if err := s.removeName(dir, h, fileName(h, otherEncoding(enc))); err != nil {
		return false, err
	}
	st.counted = false
	s.forget(h, true)
	s.opt.Log.Warn("sidecar rebuilt from the content", "blob", h.String(), "why", loadErr)
	return true, s.syncDir(dir, h[0])
}

func otherEncoding(enc string) string {
	if enc == encRaw {
		return encZstd
	}
	return encRaw
}

// describes reports whether sc is a sidecar of content that was found to be so.
func describes(sc *Sidecar, sum Summed, enc string, frames []uint32) bool {
	return sc.Encoding == enc && sc.Size == sum.Ref.Size && bytes.Equal(sc.Blocks, sum.Blocks) && (enc == encRaw || slices.Equal(sc.Frames, frames))
}

// sidecarOf is a sidecar for that content, with what an old one that could be read says of its past.
func (s *files) sidecarOf(dir int, old *Sidecar, oldErr error, sum Summed, enc string, frames []uint32) Sidecar {
	meta := Meta{}
	var fi unix.Stat_t
	if unix.Fstatat(dir, fileName(sum.Ref.Hash, enc), &fi, unix.AT_SYMLINK_NOFOLLOW) == nil {
		meta.Time = time.Unix(fi.Mtim.Unix())
	}
	if oldErr == nil {
		meta = Meta{Level: old.IntegrityLevel, Version: old.Version, Time: old.Timestamp}
	}
	sc := newSidecar(sum, meta)
	if oldErr == nil {
		sc.BackupCount, sc.LastBackup = old.BackupCount, old.LastBackup
	}
	if enc == encZstd {
		sc = sc.encoded(frames)
	}
	return sc
}

// fromParity computes damaged content. why is what is wrong with it, and the error when there is no parity.
func (s *files) fromParity(ctx context.Context, ref Ref, why error, current func() bool) (computed int64, sidecar bool, err error) {
	h := ref.Hash
	pr, pf, err := s.openParity(ctx, h)
	if err != nil {
		if errors.Is(err, ErrNotFound) || unreadable(err) && errors.Is(why, ErrDamaged) {
			err = damagedBy(h, why)
		}
		return 0, false, err
	}
	defer pf.release()
	if pr.ref.Size != ref.Size || ref.Root != (Root{}) && pr.ref.Root != ref.Root {
		return 0, false, &DamageError{h, "parity", "it is that of a blob of another size or root"}
	}
	var content atReader = bytes.NewReader(nil)
	if f, err := s.openContent(h, pr.enc); err == nil {
		defer f.release()
		content = f
	} else if !unreadable(err) {
		return 0, false, err
	}
	t, err := s.newTmp()
	if err != nil {
		return 0, false, err
	}
	defer t.drop()
	if computed, err = pr.recoverContent(ctx, content, t); err != nil {
		return 0, false, err
	}
	sum, frames, err := s.scan(ctx, ref, sized{t, pr.stored}, pr.enc, nil)
	if err == nil && ref.Root != (Root{}) && sum.Ref.Root != ref.Root {
		err = &DamageError{h, "root", "what the parity gives does not have the root that the blob should have"}
	}
	if err != nil {
		return 0, false, err
	}
	if err := t.sync(); err != nil {
		return 0, false, err
	}
	sidecar, err = s.installRecovered(ref, pr.enc, sum, frames, t, current)
	if err == nil {
		s.opt.Log.Warn("content computed from its parity", "blob", h.String(), "bytes", computed, "why", why)
	}
	return computed, sidecar, err
}

// damagedBy makes an error of reading content one of the blob.
func damagedBy(h Hash, why error) error {
	if lookElsewhere(why) {
		return why
	}
	return &DamageError{h, "content", why.Error()}
}

// installRecovered gives t, which is verified and durable, the name of the content.
func (s *files) installRecovered(ref Ref, enc string, sum Summed, frames []uint32, t *tmpFile, current func() bool) (sidecar bool, err error) {
	h := ref.Hash
	st := &s.stripes[h[0]]
	st.mu.Lock()
	defer st.mu.Unlock()
	if !current() {
		return false, errChanged
	}
	dir, err := s.dirForChange(h[0])
	if err != nil {
		return false, err
	}
	sc, scErr := s.loadSidecar(h, blockCount(ref.Size))
	if scErr != nil && !unreadable(scErr) {
		return false, scErr
	}
	st.counted = false
	s.forget(h, true)
	defer s.forget(h, true)
	if err := t.commit(dir, h, fileName(h, enc)); err != nil {
		return false, err
	}
	if sidecar = scErr != nil || !describes(&sc, sum, enc, frames); sidecar {
		if err := s.writeSidecar(dir, h, s.sidecarOf(dir, &sc, scErr, sum, enc, frames), true); err != nil {
			return false, err
		}
	}
	if err := s.removeName(dir, h, fileName(h, otherEncoding(enc))); err != nil {
		return false, err
	}
	return sidecar, s.syncDir(dir, h[0])
}

// dropStaleParity removes a parity that is not that of the content that sc describes. The stripe is locked.
func (s *files) dropStaleParity(ctx context.Context, dir int, h Hash, sc *Sidecar) error {
	if sc.Size <= MaxSmall {
		return nil
	}
	pr, f, why := s.openParity(context.WithoutCancel(ctx), h)
	if errors.Is(why, ErrNotFound) {
		return nil
	}
	if why == nil {
		f.release()
		if pr.fits(Ref{Hash: h, Size: sc.Size}, sc.Encoding, sc.StoredSize) {
			return nil
		}
	}
	err := s.removeName(dir, h, h.String()+extParity)
	parityGone(ctx, h, why, err)
	return err
}
