package blobstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const extParity = ".par"

// unreadable reports whether an error of reading content is one that other copies or the parity can make good: damage, absence, a bad place on the disk.
func unreadable(err error) bool { return lookElsewhere(err) || errors.Is(err, unix.EIO) }

// WriteAt makes tmpFile a sparseFile.
func (t *tmpFile) WriteAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := retryEINTR(func() (int, error) { return unix.Pwrite(t.fd, p[done:], off+int64(done)) })
		if err != nil {
			return done, &fs.PathError{Op: "write", Path: t.s.opt.storePath(blobsDir, tmpDir, t.name), Err: err}
		}
		done += n
	}
	return done, nil
}

// ReadAt reads what was written.
func (t *tmpFile) ReadAt(p []byte, off int64) (int, error) {
	return (&openFile{fd: t.fd}).readAt(p, off)
}

// sizedFile is content with its size; lossless as far as ReadAt is.
type sizedFile interface {
	atReader
	length() int64
}

func (f *openFile) length() int64 { return f.size }

// sized gives an atReader its size.
type sized struct {
	atReader
	n int64
}

func (s sized) length() int64 { return s.n }

// located is what there is of a blob: the content that the sidecar describes, or else the content that is there.
type located struct {
	f     *openFile // nil: none; why says so
	why   error
	enc   string
	sc    Sidecar
	scErr error
}

func (l *located) release() {
	if l.f != nil {
		l.f.release()
	}
}

// locate looks for content, and for the sidecar of a blob of at most that many blocks. Its error is one of the system.
func (s *files) locate(h Hash, blocks int64) (l located, err error) {
	if l.sc, l.scErr = s.loadSidecar(h, blocks); l.scErr != nil && !unreadable(l.scErr) {
		return l, l.scErr
	}
	order := encodings()
	if l.scErr == nil && l.sc.Encoding == encZstd {
		slices.Reverse(order[:])
	}
	l.why = notFound(h)
	for _, enc := range order {
		f, err := s.openContent(h, enc)
		if err == nil {
			l.f, l.enc, l.why = f, enc, nil
			return l, nil
		}
		if !unreadable(err) {
			return l, err
		}
		if errors.Is(l.why, ErrNotFound) {
			l.why = err
		}
	}
	return l, nil
}

// openParity opens the parity of h; the caller releases the file. ErrNotFound, *DamageError.
func (s *files) openParity(ctx context.Context, h Hash) (*parityReader, *openFile, error) {
	f, err := s.openName(h, h.String()+extParity)
	if err != nil {
		return nil, nil, err
	}
	pr, err := openParity(ctx, f, f.size, h)
	if err != nil {
		f.release()
		return nil, nil, err
	}
	return pr, f, nil
}

func (s *files) parity(ctx context.Context, h Hash) (int64, bool, error) {
	pr, f, err := s.openParity(ctx, h)
	if errors.Is(err, ErrNotFound) {
		_, err = s.contentSize(h)
		return 0, false, err
	}
	if errors.Is(err, ErrDamaged) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	defer f.release()
	l, err := s.locate(h, blockCount(pr.ref.Size))
	if err != nil {
		return 0, false, err
	}
	defer l.release()
	if l.f != nil && l.enc != pr.enc {
		return 0, false, nil // of what was there before it was compressed
	}
	return f.size, true, nil
}

// inspect looks again, while nobody changes the blob, before it says that something is wrong.
func (s *files) inspect(ctx context.Context, ref Ref) ([]Finding, error) {
	found, err := s.inspectOnce(ctx, ref)
	if err == nil && len(found) == 0 || err != nil && !errors.Is(err, ErrNotFound) {
		return found, err
	}
	st := &s.stripes[ref.Hash[0]]
	st.mu.Lock()
	defer st.mu.Unlock()
	return s.inspectOnce(ctx, ref)
}

func (s *files) inspectOnce(ctx context.Context, ref Ref) (found []Finding, err error) {
	l, err := s.locate(ref.Hash, blockCount(ref.Size))
	if err != nil {
		return nil, err
	}
	defer l.release()
	pr, pf, parErr := s.openParity(ctx, ref.Hash)
	if parErr == nil {
		defer pf.release()
	} else if !unreadable(parErr) {
		return nil, parErr
	}
	expect := int64(-1) // stored bytes, when they are known
	if l.f == nil {
		if errors.Is(l.why, ErrNotFound) && errors.Is(l.scErr, ErrNotFound) && errors.Is(parErr, ErrNotFound) {
			return nil, l.why
		}
		found = append(found, Finding{Part: PartMissing, Detail: l.why.Error()})
		if l.enc = encRaw; l.scErr == nil {
			l.enc = l.sc.Encoding
		} else if parErr == nil {
			l.enc = pr.enc
		}
	} else {
		if found, err = s.inspectContent(ctx, ref, &l); err != nil {
			return nil, err
		}
		if len(found) == 0 {
			expect = l.f.size
		}
	}
	if l.scErr != nil {
		found = append(found, Finding{Part: PartSidecar, Detail: l.scErr.Error()})
	}
	more, err := inspectParity(ctx, pr, parErr, ref, l.enc, expect)
	return append(found, more...), err
}

// inspectParity returns what is damaged of the parity that belongs to ref, stored so; expect -1: not known. parErr says why pr could not be opened.
func inspectParity(ctx context.Context, pr *parityReader, parErr error, ref Ref, enc string, expect int64) ([]Finding, error) {
	switch {
	case errors.Is(parErr, ErrNotFound):
		return nil, nil
	case parErr != nil:
		return []Finding{{Part: PartParity, Detail: parErr.Error()}}, nil
	}
	if expect < 0 {
		expect = pr.stored
	}
	if !pr.fits(ref, enc, expect) {
		return []Finding{{Part: PartParity, Len: pr.size, Detail: "it is not the parity of the content as it is stored now"}}, nil
	}
	return pr.inspect(ctx)
}

// inspectContent checks the content of l, and its sidecar against it: then l.scErr is set.
func (s *files) inspectContent(ctx context.Context, ref Ref, l *located) ([]Finding, error) {
	adviseScan(l.f)
	if l.scErr == nil && (l.sc.Size != ref.Size || ref.Root != (Root{}) && RootOf(l.sc.Blocks) != ref.Root || l.sc.Encoding != l.enc) {
		l.scErr = &DamageError{ref.Hash, "sidecar", "its size, root or encoding is not that of the blob"}
	}
	if l.scErr == nil && ref.Root != (Root{}) {
		lay := newLayout(&l.sc)
		found, err := inspectBlocks(ctx, ref, lay, l.f, s.codec)
		if err != nil || len(found) == 0 {
			return found, err
		}
		if sum, frames, err := s.scan(ctx, ref, l.f, l.enc, nil); err == nil && sum.Ref.Root == ref.Root {
			l.scErr = &DamageError{ref.Hash, "sidecar", "its frames are not those of the content"}
			l.sc = l.sc.encoded(frames)
			return nil, nil
		} else if err != nil && !unreadable(err) {
			return nil, err
		}
		return found, nil
	}
	sum, frames, err := s.scan(ctx, ref, l.f, l.enc, nil)
	if err == nil && ref.Root != (Root{}) && sum.Ref.Root != ref.Root {
		err = &DamageError{ref.Hash, "root", "the content has its hash, but its blocks do not have the root that the blob should have"}
	}
	if err == nil {
		if l.scErr == nil && (!bytes.Equal(sum.Blocks, l.sc.Blocks) || l.enc == encZstd && !slices.Equal(frames, l.sc.Frames)) {
			l.scErr = &DamageError{ref.Hash, "sidecar", "its block hashes or frames are not the content's"}
		}
		return nil, nil
	}
	if !unreadable(err) {
		return nil, err
	}
	return []Finding{contentFinding(err, l.f.size)}, nil
}

// contentFinding is damage that a scan met.
func contentFinding(err error, size int64) Finding {
	f := Finding{Part: PartContent, Len: size, Detail: err.Error()}
	if d := (*DamageError)(nil); errors.As(err, &d) {
		if n, ok := strings.CutPrefix(d.Part, "block "); ok {
			if _, err := fmt.Sscanf(n, "%d", &f.Index); err == nil {
				f.Part, f.Len = PartBlock, 0
			}
		}
	}
	return f
}

// inspectBlocks checks content block by block. lay is vouched for by the root, which the record that named the blob binds to its name: blocks that have their
// hashes are the content that was written, and a second pass with SHA-256, three times as slow, would say nothing more.
func inspectBlocks(ctx context.Context, ref Ref, lay *layout, r sizedFile, c *codec) (found []Finding, err error) {
	buf, spare := c.buf(), c.buf()
	defer c.free(buf)
	defer c.free(spare)
	for b := range blockCount(ref.Size) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		at, n := lay.stored(b)
		got, err := r.ReadAt(buf[:n], at)
		if err != nil && err != io.EOF && !unreadable(err) {
			return nil, fmt.Errorf("read blob %s: %w", ref.Hash, err)
		}
		plain := buf[:n]
		if want := blockLen(ref.Size, b); n != want {
			plain = spare[:want]
		}
		switch {
		case err != nil && err != io.EOF:
		case got != n:
			err = fmt.Errorf("it ends after %d bytes", got)
		default:
			err = c.unpack(ref.Hash, lay, b, plain, buf[:n])
		}
		if err != nil {
			found = append(found, Finding{Part: PartBlock, Index: int(b), Off: at, Len: int64(n), Detail: err.Error()})
			continue
		}
	}
	if n := lay.storedSize(); r.length() > n {
		found = append(found, Finding{Part: PartContent, Off: n, Len: r.length() - n, Detail: "it goes on behind its end"})
	}
	return found, nil
}

// adviseScan has the system read the medium, not its cache, where that can be avoided.
func adviseScan(f *openFile) {
	unix.Fadvise(f.fd, 0, 0, unix.FADV_DONTNEED)
	unix.Fadvise(f.fd, 0, 0, unix.FADV_SEQUENTIAL)
}

// rawFile reads an open file from its beginning.
type rawFile struct {
	*io.SectionReader
	f *openFile
}

func (r *rawFile) Close() error {
	r.f.release()
	return nil
}

func (s *files) raw(ctx context.Context, h Hash) (io.ReadCloser, int64, error) {
	size, err := s.contentSize(h)
	if err != nil {
		return nil, 0, err
	}
	l, err := s.locate(h, 1+size/8)
	if err != nil {
		return nil, 0, err
	}
	if l.f == nil {
		return nil, 0, l.why
	}
	return &rawFile{io.NewSectionReader(eofReader{l.f}, 0, l.f.size), l.f}, l.f.size, ctx.Err()
}

// eofReader turns short reads into io.EOF, as io.ReaderAt asks for.
type eofReader struct{ r atReader }

func (e eofReader) ReadAt(p []byte, off int64) (int, error) {
	n, err := e.r.ReadAt(p, off)
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

func (s *files) amend(ctx context.Context, h Hash, change func(*Sidecar)) error {
	for attempt := 0; ; attempt++ {
		size, err := s.contentSize(h)
		if err != nil {
			return err
		}
		again, err := s.amendOnce(h, size, change)
		if !again || attempt == 2 {
			return err
		}
		if _, err := s.sidecar(ctx, h); err != nil { // makes it anew
			return err
		}
	}
}

func (s *files) amendOnce(h Hash, size int64, change func(*Sidecar)) (again bool, err error) {
	st := &s.stripes[h[0]]
	st.mu.Lock()
	defer st.mu.Unlock()
	sc, err := s.loadSidecar(h, 1+size/8)
	if err != nil {
		return lookElsewhere(err), err
	}
	dir, err := s.dirForChange(h[0])
	if err != nil {
		return false, err
	}
	change(&sc)
	s.dirty.add(h)
	return false, s.writeSidecar(dir, h, sc, false)
}
