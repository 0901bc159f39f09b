// SPDX-License-Identifier: Apache-2.0

// Package android reads what a phone says about itself: its network interfaces and its kernel release.
package android
