// SPDX-License-Identifier: Apache-2.0

package pcapng

import (
	"bytes"
	"container/list"
	"strings"
)

// mostSecrets is how many of them are kept for files to come, and mostSecretBytes how many bytes of them, with their keys.
const (
	mostSecrets     = 4096
	mostSecretBytes = 4 << 20
)

// known is the secrets that were written last, by their keys. The zero value is ready to use.
type known struct {
	order list.List // of *Secrets: those that were put last are at the back
	of    map[string]*list.Element
	bytes int
	gone  uint64 // those that were too many
}

// size is what secrets count in the bytes that are kept.
func (s *Secrets) size() int { return len(s.Key) + len(s.Data) }

func (k *known) put(s *Secrets) {
	k.forget(s.Key)
	for len(k.of) > 0 && (len(k.of) == mostSecrets || k.bytes+s.size() > mostSecretBytes) {
		k.forget(k.order.Front().Value.(*Secrets).Key)
		k.gone++
	}
	k.bytes += s.size()
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
		k.bytes -= e.Value.(*Secrets).size()
		k.order.Remove(e)
		delete(k.of, key)
	}
}

// Forgotten returns how many keys had their secrets dropped, because others came and the most are kept already: those are
// repeated in no file to come.
func (w *Writer) Forgotten() uint64 { return w.secrets.gone }

// addSecrets queues what the file has not yet of secrets, and keeps them for files to come.
func (w *Writer) addSecrets(b *Secrets) error {
	if w.classic == nil {
		b = w.remember(b) // after a failure, too, for when it is over
		if w.err == nil {
			w.buf = appendSecrets(w.buf, b)
		}
	}
	return w.err
}

// remember keeps secrets, and returns what of them is new to the file that is written, which has all that are kept.
func (w *Writer) remember(b *Secrets) *Secrets {
	if len(b.Data) == 0 {
		w.secrets.forget(b.Key)
		return b
	}
	kept := &Secrets{strings.Clone(b.Key), b.Type, bytes.Clone(cutSecrets(b.Data))}
	old := w.secrets.get(b.Key)
	w.secrets.put(kept)
	if old == nil || old.Type != kept.Type {
		return kept
	}
	rest, more := bytes.CutPrefix(kept.Data, old.Data)
	if more && (len(rest) == 0 || bytes.HasSuffix(old.Data, newline)) {
		return &Secrets{kept.Key, kept.Type, rest}
	}
	return kept
}

var newline = []byte{'\n'}

// cutSecrets returns what a block can have of secrets, in whole lines if they are lines.
func cutSecrets(data []byte) []byte {
	if len(data) <= maxData {
		return data
	}
	data = data[:maxData]
	if end := bytes.LastIndexByte(data, '\n'); end >= 0 {
		return data[:end+1]
	}
	return data
}

// recall queues the secrets of connections that may go on, in the order in which they were written.
func (w *Writer) recall() {
	before := len(w.buf)
	for e := w.secrets.order.Front(); e != nil; e = e.Next() {
		w.buf = appendSecrets(w.buf, e.Value.(*Secrets))
	}
	if w.written == 0 {
		w.recalled = int64(len(w.buf) - before)
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
