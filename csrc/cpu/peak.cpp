#include "cpu/peak.h"

#include "sslfast/isa.h"

SSLFAST_DECLARE_KERNELS(PeakKernels, peak_kernels)
SSLFAST_DECLARE_MATRIX_KERNELS(MatrixPeakKernels, matrix_peak_kernels)

namespace sslfast {

SSLFAST_EXPORT const PeakKernels& find_peak_kernels(int isa) { return peak_kernels_for(isa); }
SSLFAST_EXPORT const MatrixPeakKernels* find_matrix_peak_kernels(int isa) {
  return matrix_peak_kernels_by_matrix(isa);
}

}  // namespace sslfast
