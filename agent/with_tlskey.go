// SPDX-License-Identifier: Apache-2.0

//go:build !no_tlskey

package main

import _ "droidtap/agent/probe/tlskey"
