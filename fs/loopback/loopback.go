// Package loopback serves go-fuse's own loopback filesystem: the peer that the benchmarks compare with. It has the options of
// go-fuse's example/loopback (entries and attributes valid for one second, as libfuse has them), so it is as fast as it is for
// its users.
package loopback

import (
	"context"
	"fmt"
	"time"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// Serve shows the directory root at mountpoint and answers until ctx is done or somebody unmounts it. It calls ready once, when
// the mount can be used. When ctx is done it unmounts; a mount that is still busy then is an error, and stays served by nobody.
func Serve(ctx context.Context, root, mountpoint string, ready func()) error {
	node, err := gofs.NewLoopbackRoot(root)
	if err != nil {
		return fmt.Errorf("open %s for the loopback: %w", root, err)
	}
	second := time.Second
	server, err := gofs.Mount(mountpoint, node, &gofs.Options{
		AttrTimeout:     &second,
		EntryTimeout:    &second,
		NullPermissions: true,
		MountOptions:    fuse.MountOptions{FsName: root, Name: "loopback"},
	})
	if err != nil {
		return fmt.Errorf("mount the loopback at %s: %w", mountpoint, err)
	}
	served := make(chan struct{})
	go func() {
		server.Wait()
		close(served)
	}()
	ready()
	select {
	case <-served:
		return nil
	case <-ctx.Done():
	}
	if err := server.Unmount(); err != nil {
		return fmt.Errorf("unmount %s: %w; close what is open there and unmount it with fusermount3 -u", mountpoint, err)
	}
	<-served
	return nil
}
