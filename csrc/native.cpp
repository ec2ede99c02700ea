// sslfast._native: what was built, what this machine can run, its arithmetic limit, and hooks for
// tests. No tensor crosses it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <torch/csrc/stable/ops.h>

#include <chrono>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "cpu/peak.h"
#include "sslfast/isa.h"

namespace py = pybind11;

namespace {

using sslfast::Isa;

constexpr Isa kWorstFirst[] = {Isa::kEmulated, Isa::kBaseline,   Isa::kAvx2,
                               Isa::kAvx512,   Isa::kAvx512Bf16, Isa::kAmx};

std::vector<Isa> compiled_isas() {
  std::vector<Isa> found;
  for (const Isa isa : kWorstFirst)
    if (sslfast::isa_compiled(isa)) found.push_back(isa);
  return found;
}

// Name, number, and why it cannot run here, empty where it can.
using IsaReport = std::tuple<std::string, int, std::string>;
std::vector<IsaReport> isas() {
  std::vector<IsaReport> found;
  for (const Isa isa : compiled_isas())
    found.emplace_back(sslfast::isa_name(isa), int(isa), sslfast::isa_missing(isa));
  return found;
}

int isa_number(const std::string& name) {
  std::string expected;
  for (const Isa isa : compiled_isas()) {
    if (name == sslfast::isa_name(isa)) return int(isa);
    expected += std::string(expected.empty() ? "" : ", ") + sslfast::isa_name(isa);
  }
  throw py::value_error("isa = '" + name + "'; expected one of " + expected);
}

py::dict build_info() {
  py::dict info;
  info["version"] = SSLFAST_VERSION;
  info["compiler"] = SSLFAST_COMPILER;
  info["torch"] = SSLFAST_TORCH_VERSION;
  info["stable_abi"] = "2.10";
  info["build_type"] = SSLFAST_BUILD_TYPE;
  std::vector<std::string> names;
  for (const Isa isa : compiled_isas()) names.push_back(sslfast::isa_name(isa));
  info["isas"] = names;
  return info;
}

// How many threads of torch's pool a parallel loop really runs on.
int distinct_threads() {
  std::mutex mutex;
  std::set<std::thread::id> seen;
  const int64_t threads = torch::stable::get_num_threads();
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    const std::lock_guard<std::mutex> lock(mutex);
    seen.insert(std::this_thread::get_id());
  });
  return int(seen.size());
}

// Floating-point operations a second (a multiply-add counts two), summed over `threads` threads.
double fma_peak(const std::string& isa, const std::string& dtype, double seconds, int threads) {
  if (dtype != "float32" && dtype != "float64")
    throw py::value_error("dtype = '" + dtype + "'; expected float32 or float64");
  if (!(seconds > 0) || seconds > 60)
    throw py::value_error("seconds must lie in (0, 60], got " + std::to_string(seconds));
  if (threads < 1 || threads > 4096)
    throw py::value_error("threads must lie in [1, 4096], got " + std::to_string(threads));
  const sslfast::PeakKernels& kernels = sslfast::find_peak_kernels(isa_number(isa));
  const auto loop = dtype == "float32" ? kernels.fma_float : kernels.fma_double;
  std::vector<double> rates(threads), sums(threads);
  const auto measure = [&](int thread) {
    using Clock = std::chrono::steady_clock;
    double operations = 0;
    const auto start = Clock::now();
    std::chrono::duration<double> spent{};
    do {
      operations += loop(100000, &sums[thread]);
      spent = Clock::now() - start;
    } while (spent.count() < seconds);
    rates[thread] = operations / spent.count();
  };
  std::vector<std::thread> workers;
  for (int thread = 0; thread < threads; ++thread) workers.emplace_back(measure, thread);
  for (std::thread& worker : workers) worker.join();
  double total = 0;
  for (const double rate : rates) total += rate;
  return total;
}

std::vector<double> exp_hook(const std::string& isa, const std::string& dtype,
                             const std::vector<double>& x) {
  const sslfast::PeakKernels& kernels = sslfast::find_peak_kernels(isa_number(isa));
  std::vector<double> out(x.size());
  if (dtype == "float64") {
    kernels.exp_double(x.data(), out.data(), int64_t(x.size()));
    return out;
  }
  const std::vector<float> narrow(x.begin(), x.end());
  std::vector<float> result(x.size());
  kernels.exp_float(narrow.data(), result.data(), int64_t(x.size()));
  return {result.begin(), result.end()};
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Build and machine report, arithmetic limit and test hooks of sslfast's native code.";
  m.def("build_info", build_info, "Version, compiler, torch and instruction sets of this build.");
  m.def("isas", isas, "Instruction sets compiled, the best last: name, number, why missing.");
  m.def("num_threads", [] { return int(torch::stable::get_num_threads()); });
  m.def("distinct_threads", distinct_threads, py::call_guard<py::gil_scoped_release>());
  m.def("fma_peak", fma_peak, py::arg("isa"), py::arg("dtype") = "float32",
        py::arg("seconds") = 0.5, py::arg("threads") = 1, py::call_guard<py::gil_scoped_release>());
  m.def("exp", exp_hook, py::arg("isa"), py::arg("dtype"), py::arg("x"));
}
