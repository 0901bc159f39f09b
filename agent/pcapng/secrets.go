// SPDX-License-Identifier: Apache-2.0

package pcapng

import (
	"bytes"
	"container/list"
	"strings"
)

// mostSecrets is how many of them are kept for files to come.
const mostSecrets = 4096

// known is the secrets that were written last, by their keys. The zero value is ready to use.
type known struct {
	order list.List // of *Secrets: those that were put last are at the back
	of    map[string]*list.Element
}

func (k *known) put(s *Secrets) {
	k.forget(s.Key)
	if len(k.of) == mostSecrets {
		k.forget(k.order.Front().Value.(*Secrets).Key)
	}
	if k.of == nil {
		k.of = map[string]*list.Element{}
	}
	k.of[s.Key] = k.order.PushBack(s)
}

// get returns nil for a key that is not known.
func (k *known) get(key string) *Secrets {
	if e, ok := k.of[key]; ok {
		return e.Value.(*Secrets)
	}
	return nil
}

func (k *known) forget(key string) {
	if e, ok := k.of[key]; ok {
		k.order.Remove(e)
		delete(k.of, key)
	}
}

// rememberSecrets keeps secrets, and returns them if they are new.
func (w *Writer) rememberSecrets(b *Secrets) *Secrets {
	if w.classic != nil {
		return &Secrets{}
	}
	if len(b.Data) == 0 {
		w.secrets.forget(b.Key)
		return b
	}
	kept := &Secrets{strings.Clone(b.Key), b.Type, bytes.Clone(b.Data[:min(len(b.Data), maxData)])}
	old := w.secrets.get(b.Key)
	w.secrets.put(kept)
	if old != nil && old.Type == kept.Type && bytes.Equal(old.Data, kept.Data) {
		return &Secrets{}
	}
	return kept
}

// recall queues the secrets of connections that may go on, in the order in which they were written.
func (w *Writer) recall() {
	for e := w.secrets.order.Front(); e != nil; e = e.Next() {
		w.buf = appendSecrets(w.buf, e.Value.(*Secrets))
	}
}

// appendSecrets appends a decryption secrets block (section 4.7), or nothing if there are none.
func appendSecrets(b []byte, s *Secrets) []byte {
	if len(s.Data) == 0 {
		return b
	}
	b, start := begin(b, blockSecrets)
	b = le.AppendUint32(b, uint32(s.Type))
	b = le.AppendUint32(b, uint32(len(s.Data)))
	b = pad(append(b, s.Data...))
	return end(b, start, len(b))
}
