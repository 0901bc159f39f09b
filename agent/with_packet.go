// SPDX-License-Identifier: Apache-2.0

//go:build !no_packet

package main

import _ "droidtap/agent/probe/packet"
