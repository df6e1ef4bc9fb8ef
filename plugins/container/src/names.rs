//! Names for containers that nobody named: an adjective and a person of science, `calm_curie`.

use rand::seq::IndexedRandom;

const ADJECTIVES: &[&str] = &[
    "able", "agile", "amber", "bold", "brave", "bright", "brisk", "calm", "candid", "clear",
    "clever", "cosmic", "crisp", "daring", "deft", "eager", "early", "elegant", "fair", "fearless",
    "fluent", "fond", "frank", "gentle", "glad", "golden", "grand", "happy", "hardy", "humble",
    "jolly", "keen", "kind", "lively", "lucid", "lucky", "mellow", "merry", "mighty", "modest",
    "neat", "nimble", "noble", "patient", "plucky", "polite", "proud", "quick", "quiet", "ready",
    "robust", "serene", "sharp", "silent", "sincere", "smart", "solid", "steady", "subtle",
    "sunny", "swift", "tidy", "upbeat", "vivid", "warm", "wise", "witty", "zesty",
];

const PEOPLE: &[&str] = &[
    "abel",
    "ampere",
    "archimedes",
    "babbage",
    "banach",
    "bell",
    "bernoulli",
    "bohr",
    "boole",
    "bose",
    "cantor",
    "carson",
    "cauchy",
    "chandra",
    "clarke",
    "curie",
    "dalton",
    "darwin",
    "descartes",
    "dijkstra",
    "dirac",
    "einstein",
    "erdos",
    "euclid",
    "euler",
    "faraday",
    "fermat",
    "fermi",
    "feynman",
    "fourier",
    "franklin",
    "galileo",
    "galois",
    "gauss",
    "germain",
    "goedel",
    "hamilton",
    "hawking",
    "hertz",
    "hilbert",
    "hopper",
    "hubble",
    "hypatia",
    "johnson",
    "kepler",
    "knuth",
    "kovalevskaya",
    "lagrange",
    "lamarr",
    "laplace",
    "leibniz",
    "lovelace",
    "maxwell",
    "meitner",
    "mendel",
    "newton",
    "noether",
    "pascal",
    "pasteur",
    "planck",
    "poincare",
    "ramanujan",
    "riemann",
    "ritchie",
    "shannon",
    "tesla",
    "thompson",
    "turing",
    "volta",
    "wiles",
    "wu",
    "yonath",
];

/// A random name; from the fourth try on with a number, as free names get rare.
pub fn random(attempt: u32) -> String {
    let mut rng = rand::rng();
    let pick = |list: &[&'static str], rng: &mut rand::rngs::ThreadRng| {
        list.choose(rng).copied().unwrap_or("calm")
    };
    let name = format!("{}_{}", pick(ADJECTIVES, &mut rng), pick(PEOPLE, &mut rng));
    if attempt < 3 { name } else { format!("{name}{}", rand::random_range(0..10_000)) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn generated_names_are_valid() {
        for attempt in 0..10 {
            assert!(gantry_sdk::id::is_valid_name(&super::random(attempt)));
        }
    }
}
