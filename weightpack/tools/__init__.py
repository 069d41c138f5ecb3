# SPDX-License-Identifier: Apache-2.0
"""What looks at weights from outside: measurements, pictures, comparisons, single tensors."""
