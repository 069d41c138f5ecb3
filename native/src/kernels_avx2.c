/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels.h"
#ifdef WP_X86_64
const wp_kernels wp_kernels_avx2 = {0};
#endif
